"""What preparation does without a rule, by names that stand in removals and the report beside the rules' names.

Most of it looks at a line's neighbours, and is switched off by name as rules are.
"""

BLANK_LINE = "blank_line"
OUTER_WHITESPACE = "outer_whitespace"
HARD_WRAP = "hard_wrap"
PAGE_BREAK = "page_break"
CONTENTS = "table_of_contents"
PROVEN_HEADING = "title_in_contents"
NUMBERED_HEADING = "numbered_heading"
SIGNED_HEADING = "signed_heading"
LONE_NUMBER = "lone_number"
WORK_TITLE = "title_of_work"
RUNNING_HEAD = "running_head"
NOISE_LINE = "noise_line"
NOISE_INSET = "noise_inset"
FURNITURE = "chapter_furniture"
RECURRING = "recurring_line"
TO_SIMPLIFIED = "traditional_to_simplified"
UNDECODABLE = "undecodable_line"
SHARED_LINE = "line_of_many_works"

# A line that is no speech or story, and that so many documents have, is no author's.
MIN_SHARING, MIN_SHARING_SHARE = 5, 0.3

# Of each, its action and why.
BUILT_IN = {
    BLANK_LINE: ("drop_line", "Lines without text; paragraphs are separated by one line break."),
    OUTER_WHITESPACE: ("cut_span", "Indents and trailing spaces; a paragraph starts with its first character."),
    HARD_WRAP: ("rewrite", "Line breaks at a fixed width, inside a paragraph."),
    PAGE_BREAK: ("rewrite", "The line break in a sentence that a page marker had torn in halves."),
    CONTENTS: ("drop_line", "A list of headings that are repeated over their chapters."),
    PROVEN_HEADING: ("drop_line", "A heading without a number, which the table of contents names."),
    NUMBERED_HEADING: ("drop_line", "A heading that its number alone proves, among those of the chapters around it."),
    SIGNED_HEADING: ("drop_line", "A title behind a sign that stands before titles alone, all through the work."),
    LONE_NUMBER: (
        "drop_line",
        "A number alone on its line, a page's or a section's; not one of several, or counted down.",
    ),
    WORK_TITLE: ("drop_line", "The name of the work, above what else stands in front of it."),
    RUNNING_HEAD: (
        "drop_line",
        "The head of a page: the same line again and again, amid sentences, or the work's name.",
    ),
    NOISE_LINE: (
        "drop_line",
        "A line that reads like what authors, sites and readers write, not like the work: by a model.",
    ),
    NOISE_INSET: ("cut_span", "Noise glued into the middle of a sentence, that no rule knows: by a model."),
    FURNITURE: ("drop_line", "A line that stands at the same place in most chapters."),
    RECURRING: ("drop_line", "A line that one work repeats hundreds of times, and that is no speech or story."),
    TO_SIMPLIFIED: ("rewrite", "Traditional characters in a work that is otherwise simplified."),
    UNDECODABLE: ("drop_line", "A line whose bytes are text in no encoding that was tried."),
    SHARED_LINE: (
        "drop_line",
        f"A line that is no speech or story and stands in {MIN_SHARING_SHARE:.0%} of all documents, {MIN_SHARING} at least.",
    ),
}
# What needs no example: everyone knows what a blank line looks like.
LAYOUT = (BLANK_LINE, OUTER_WHITESPACE)
# What can be switched off by name.
SWITCHABLE = (
    HARD_WRAP, PAGE_BREAK, NUMBERED_HEADING, SIGNED_HEADING, CONTENTS, FURNITURE, RECURRING, WORK_TITLE,
    RUNNING_HEAD, LONE_NUMBER, NOISE_LINE, NOISE_INSET, SHARED_LINE,
)  # fmt: skip
