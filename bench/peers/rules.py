"""The dozen rules that every peer gets: the same kinds of noise that raystyle's pack knows, as plain expressions.

Each is a name, a pattern and what to put in place of a match, applied one after the other to a whole text. They use what
Python's `re` and the `regex` module (Data-Juicer's, with `.` matching line ends) understand alike. Imports `re` only:
this file runs inside each peer's environment.
"""

import re

NUMBER = "[0-9０-９零〇一二三四五六七八九十百千两]{1,9}"
ADDRESS = r"(?:https?://[!-~]{3,120}|(?<![A-Za-z0-9])(?:www|ｗｗｗ)[.．](?:[A-Za-z0-9Ａ-Ｚａ-ｚ-]{1,40}[.．]){1,3}[A-Za-zＡ-Ｚａ-ｚ]{2,5}(?:/[!-~]{0,80})?)"
LABELS = "作\\s?者|书\\s?名|类\\s?别|状\\s?态|总?字\\s?数|更新时间|内容简介|出版社|整理|校对|来源"
PAGES = "[上下]一[章页]|返回目录|加入书签|_?分节阅读_?[0-9]{0,5}|-{0,2}>{1,2}|本章完|未完待续|全书完|全文完"

RULES = (
    # A page's end that splits a sentence; then layout, so that each line that follows is one paragraph.
    ("page_break", r"[（(]?(?:本章(?:尚)?未完|未完待续)[^（）()“”\n]{0,30}(?:[）)]|(?=\s*\n))", ""),
    ("html_tag", r"</?(?:br|p|div|span|font|script|a|b|i)\b[^<>\n]{0,200}/?>", ""),
    ("html_space", r"&(?:nbsp|ensp|emsp|#160|#12288);?", " "),
    ("layout", r"[ \t\r\u3000]*\n[\s\u3000]*", "\n"),
    ("heading", rf"(?m)^(?:正文\s?)?第{NUMBER}[章回节卷集部](?:[ \u3000：:][^。；\n]{{0,50}})?$", ""),
    ("named_heading", r"(?m)^(?:楔子|引子|序章|尾声|番外|后记|大结局)(?:[ \u3000：:][^。\n]{0,40})?$", ""),
    ("metadata", rf"(?m)^[\[【]?(?:{LABELS})\s?[:：][^。！？“”\n]{{0,60}}$", ""),
    (
        "banner",
        r"(?m)^[^“\n]{0,60}(?:请记住本[站书]|一秒记住|最新网址|无弹窗|最快更新|手机用户请|更多精彩|百度搜索)[^“\n]{0,80}$",
        "",
    ),
    ("votes", r"(?m)^[^“\n]{0,20}(?:求(?:月票|推荐票|收藏|订阅|打赏)|感谢[^\n]{0,20}打赏)[^“\n]{0,40}$", ""),
    ("page_line", rf"(?m)^[\s（(\-]*(?:(?:{PAGES})[\s|]*){{1,4}}[\s）)]*$", ""),
    ("address", ADDRESS, ""),
    ("ruler", r"(?m)^[-=*_~#＝＊—]{4,}$", ""),
    ("blank_lines", r"[ \t\r\u3000]*\n[\s\u3000]*", "\n"),
)

_COMPILED = [(re.compile(pattern), replacement) for _, pattern, replacement in RULES]


def clean(text: str) -> str:
    """A text without the noise that the rules know."""
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    return text.strip()
