import re

from raystyle import html


def test_text_is_escaped_and_markup_is_not() -> None:
    page = html.page("<a>", [("h", html.table(("x", "n"), [("<b>", 1), (html.Markup("<i>"), 2)]))])
    assert "&lt;a&gt;" in page and "&lt;b&gt;" in page and "<i>" in page
    assert "<script" not in page and "http-equiv" not in page


def test_charts_take_anything_that_is_a_number() -> None:
    chart = html.line_chart({"loss": [(0, 3.0), (1, float("nan")), (2, 1.0)], "base": [(0, 3.0)]}, "step")
    assert chart.count("<polyline") == 2 and "nan" not in chart
    assert "<polyline" not in html.line_chart({"loss": []})
    assert html.bar_chart([("a", 0), ("b", 2)]).count("<rect") == 2
    assert html.escape(1234) == "1,234" and html.escape(None) == "–"


def test_a_change_shows_what_nobody_would_see() -> None:
    (shown,) = html.changes([("<他", "\u200b\n", "“", "说")]).split("</span></div>")[:1]
    assert "&lt;他<del>" in shown and "U+200B" in shown and "↵</del><ins>“</ins>说" in shown
    assert "<ins>" not in html.changes([("", "删", "", "")]) and html.changes([]) == ""
    assert html.visible("正常的字，𠮷 abc") == "正常的字，𠮷 abc"


def test_parts_are_as_large_as_they_are() -> None:
    drawn = html.ribbons(
        ("all", "100"), [("most", 90, "", "kept"), ("little", 10, "", "removed"), ("none", 0, "", "kept")]
    )
    heights = [float(found) for found in re.findall(r'<rect[^>]* height="([0-9.]+)"', drawn)]
    assert heights == [189.0, 189.0, 21.0, 21.0] and "90.0% most" in drawn and "none" not in drawn
    assert "<svg" not in html.ribbons(("all", "0"), [("most", 0, "", "kept")])
    added = html.equation("texts", [("kept", 3, "kept"), ("gone", 0, "removed"), ("refused", 1, "rejected")])
    assert "<b>4</b> texts =" in added and "flex:3" in added and "gone" not in added
    assert "width:0%" in html.meter(0) and "width:3%" in html.meter(1e-6) and "width:100%" in html.meter(1.5)


def test_long_pages_have_links_to_their_sections() -> None:
    sections = [(f"part {number}", html.Markup("x")) for number in range(6)]
    page = html.page("t", [*sections, ("empty", html.Markup(""))])
    assert page.count('href="#s') == 6 == page.count('<section id="s') and "empty" not in page
    assert "<nav>" not in html.page("t", sections[:3])
