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
