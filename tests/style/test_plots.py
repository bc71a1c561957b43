import itertools
import re
import warnings
import xml.etree.ElementTree as ElementTree

from hypothesis import given
from hypothesis import strategies as st

from raystyle import html
from raystyle.style.report import maps, plots, svg
from raystyle.style.report.maps import Place
from raystyle.style.report.plots import Level, Line

CHINESE = Line("目标", "accent", [0, 100, 200], [4.6, None, 4.1], [4.5, None, 4.0], [4.7, None, 4.2])


def test_text_stays_text_and_colours_are_the_pages() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib has no Chinese glyphs, and nobody needs to know
        drawn = plots.over_steps("a", [CHINESE], "每个字", levels=[Level("作者 $x$", 4.3, "second")], best=100)
    root = ElementTree.fromstring(drawn)
    texts = [node.text for node in root.iter("text")]
    assert {"目标", "每个字", "作者 $x$", "recommended", "optimizer step"} <= set(texts)
    assert "var(--accent)" in drawn and not re.search(r"#(?!a-)[0-9a-f]{6}", drawn)
    assert "<style" not in drawn and "metadata" not in drawn and "font:" not in drawn


def test_two_plots_share_no_ids() -> None:
    one, two = (plots.loss(name, [(0, 2.5), (1, 2.0)], [], (2.5, 1.8)) for name in ("one", "two"))
    ids = [set(re.findall(r' id="([^"]+)"', each)) for each in (one, two)]
    assert not ids[0] & ids[1]
    for each, own in zip((one, two), ids, strict=True):
        assert set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', each)) <= {
            pair for i in own for pair in ((i, ""), ("", i))
        }
    assert one == plots.loss("one", [(0, 2.5), (1, 2.0)], [], (2.5, 1.8))


def test_every_plot_takes_the_least() -> None:
    nothing = Line("a", "accent", [0], [None])
    place = Place("独", 0.0, 0.0)
    for drawn in (
        plots.over_steps("a", [nothing], "y"),
        plots.in_rows("b", ["独"], [nothing], "x"),
        maps.plane("c", ("甲", []), [], [(place, [])], []),
        maps.distances("d", [], [], [("独", 1.0, "")], None),
        maps.frontier("e", [place], "x", course=True),
        plots.strength("f", [("y", [Line("", "gain", [1], [2.0])], [], False)]),
    ):
        assert ElementTree.fromstring(drawn).get("viewBox")


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_labels_are_moved_apart(places: list[float]) -> None:
    moved = svg.apart(places, 10, 0, 100)
    by_place = sorted(moved)
    assert all(after - before > 9.99 for before, after in itertools.pairwise(by_place))
    order = sorted(range(len(places)), key=lambda n: (places[n], n))
    assert [moved[n] for n in order] == by_place  # and keep their order


def test_widths_and_titles_of_labels() -> None:
    assert html.ems("中文") == 2.0 and html.ems("ab") < 1.3
    assert html.plain("a\n b\u202e\x00") == "a b\ufffd\ufffd" and html.plain("长" * 30, 5) == "长长长长…"


@given(st.text("ab<\n中\u202e", max_size=12), st.lists(st.tuples(st.integers(-2, 14), st.integers(-2, 14)), max_size=4))
def test_annotations_nest_and_keep_the_text(text: str, places: list[tuple[int, int]]) -> None:
    spans = [(start, end, ("<mark>", '<u class="c">')[n % 2]) for n, (start, end) in enumerate(places)]
    drawn = html.annotated(text, spans)
    assert "".join(ElementTree.fromstring(f"<p>{drawn}</p>").itertext()) == text.replace("\u202e", "U+202E")
