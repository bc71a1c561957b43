"""The page in a real browser, against the real API with a scripted model."""

import asyncio
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import page_backend
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from page_backend import MANNERED, MARKERS, PLAIN, ScriptedBackend, adapter, digest_of
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from raystyle.serving.contract import BASE, Card
from raystyle.serving.errors import RequestError

pytestmark = pytest.mark.e2e

CHROMIUM = shutil.which("chromium")
ARGS = "--no-sandbox --headless --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
PROMPT = "今日天气阴沉，"
LONG = 20_000


class Server:
    """A scripted model behind the API, on a thread of its own; every test gives it another backend."""

    def __init__(self, backend: ScriptedBackend, **config: Any) -> None:
        import uvicorn

        self.backend = backend
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        app = page_backend.application(backend, port=self.port, **config)
        self._server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="warning"))
        self._thread = threading.Thread(target=asyncio.run, args=(self._server.serve(),))
        self._thread.start()
        wait_until(lambda: self._server.started)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def stop(self) -> None:
        self.backend.released = True
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(timeout=10)


def wait_until(condition: Any, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on the path")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGS.split(), "--no-first-run"])
        yield running
        running.close()


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
def server(backend: ScriptedBackend) -> Iterator[Server]:
    running = Server(backend)
    yield running
    running.stop()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """English, on a desktop. No script may fail, and nothing on the page may break its own content security policy."""
    opened = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
    wrong: list[str] = []
    opened.on("weberror", lambda error: wrong.append(str(error.error)))
    opened.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    yield opened
    opened.close()
    assert not wrong


@pytest.fixture
def page(context: BrowserContext, server: Server) -> Page:
    return opened(context, server.url)


def opened(context: BrowserContext, url: str) -> Page:
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#picker input").first).to_be_visible()
    return page


def run(page: Page) -> None:
    page.keyboard.press("Control+Enter")
    over(page)


def over(page: Page) -> None:
    """Wait until what runs is over. In a cell of its own, for `run` returns before the page has begun."""
    expect(page.locator("#columns .cell").first).to_be_visible()
    expect(page.locator("#stop[aria-disabled=true]")).to_be_visible()
    expect(page.locator(".running")).to_have_count(0)


def column(page: Page, name: str) -> Any:
    return page.locator("section.column").filter(has=page.get_by_role("heading", name=name))


def texts(page: Page) -> list[str]:
    """The continuations as shown, without the prompt."""
    return [text.removeprefix(PROMPT) for text in page.locator(".cell .prose").all_text_contents()]


def blind(page: Page) -> None:
    page.get_by_label("Blind", exact=True).check()


# ── columns ──


def test_columns_are_written_side_by_side(page: Page, backend: ScriptedBackend) -> None:
    backend.hold_after = {BASE: 2, "guicheng": 5}
    page.keyboard.press("Control+Enter")
    expect(column(page, "base").locator(".prose")).to_have_text(PROMPT + PLAIN[0][:6])
    expect(column(page, "guicheng").locator(".prose")).to_have_text(PROMPT + MANNERED[0][:15])
    expect(page.get_by_role("status")).to_have_text("Writing: 0 of 2 done.")
    backend.released = True
    over(page)
    assert texts(page) == [PLAIN[0], MANNERED[0]]
    expect(column(page, "guicheng").locator(".pale")).to_have_text(PROMPT)
    expect(column(page, "guicheng").locator(".about")).to_contain_text(f"step 800{digest_of('guicheng')[:12]}")
    expect(column(page, "guicheng").locator(".foot")).to_contain_text("ended by itself")
    expect(page.get_by_role("status")).to_contain_text(f"Done: 2 texts, {len(PLAIN[0] + MANNERED[0])} tokens")


def test_each_text_says_how_fast_it_was_written(page: Page, backend: ScriptedBackend) -> None:
    backend.delay_s, backend.piece_chars = 0.02, 1
    run(page)
    speed = re.search(r"([\d.]+) tokens/s", column(page, "base").locator(".foot").inner_text())
    assert speed and 10 < float(speed[1]) < 50  # a character each 20 ms and what the machine adds


def test_rows_are_seeds_and_temperatures_and_columns_also_scales(page: Page, backend: ScriptedBackend) -> None:
    page.get_by_label("Seeds").fill("4，7")  # full-width, as a Chinese keyboard writes it
    page.get_by_label("Temperature").fill("0.5 1")
    page.get_by_label("Adapter scale").fill("0.5, 1")
    page.get_by_label("Length (tokens)").fill("20")
    run(page)
    assert page.locator("section.column h2").all_text_contents() == ["base", "guicheng", "guicheng"]
    feet = column(page, "base").locator(".foot").all_text_contents()
    assert [foot.split(" · ")[:2] for foot in feet] == [
        [f"seed {seed}", f"temperature {temperature}"] for temperature in ("0.5", "1") for seed in (4, 7)
    ]
    assert all(foot.endswith("at the length asked for") for foot in feet)
    expect(column(page, "guicheng").first.locator(".about")).to_contain_text("scale 0.5")
    assert {generation.scale for generation in backend.seen if generation.adapter} == {0.5, 1.0}
    tops = page.locator(".cell").evaluate_all(
        "cells => cells.map(cell => Math.round(cell.getBoundingClientRect().top))"
    )
    assert tops[:4] == tops[4:8] == tops[8:]  # a row stands in line, however long its texts


def test_new_seeds_and_a_lock_that_keeps_them(page: Page) -> None:
    seeds = page.get_by_label("Seeds")
    seeds.fill("4, 7")
    page.get_by_role("button", name="New seeds").click()
    over(page)
    drawn = seeds.input_value()
    assert drawn != "4, 7" and re.fullmatch(r"\d+, \d+", drawn)
    expect(page.locator(".foot").first).to_contain_text(f"seed {drawn.split(',')[0]}")
    page.get_by_label("keep", exact=True).check()
    page.get_by_role("button", name="New seeds").click(force=True)
    expect(seeds).to_have_value(drawn)
    expect(seeds).not_to_be_editable()


# ── markers ──


def test_markers_are_highlighted_and_counted(page: Page) -> None:
    run(page)
    own = column(page, "guicheng")
    used = sum(MANNERED[0].count(marker) for marker in MARKERS)
    assert set(own.locator("mark").all_text_contents()) <= set(MARKERS)
    expect(own.locator("mark")).to_have_count(used)
    expect(own.locator(".density")).to_have_text(f"{1000 * used / len(MANNERED[0]):.1f} markers per 1,000 characters")
    expect(column(page, "base").locator(".density")).to_have_text("0.0 markers per 1,000 characters")
    page.get_by_label("Markers", exact=True).uncheck()
    expect(page.locator("mark, .density")).to_have_count(0)
    assert texts(page) == [PLAIN[0], MANNERED[0]]


@pytest.mark.parametrize(
    ("markers", "text", "found"),
    [
        (["也", "也说不定"], "也说不定，也许", ["也说不定", "也"]),
        (["he", "it was"], "The he. HE it  was it wasn", ["he", "HE", "it  was"]),
        (["a.b", "(", "[x]", "$&", "-"], "a.b acb ( [x] x $& -", ["a.b", "(", "[x]", "$&", "-"]),
        (["罢了"], "他说罢了罢了abc罢了", ["罢了"] * 3),
        (["", "罢了"], "无", []),
        ([], "罢了", []),
    ],
)
def test_markers_are_found_whole_and_the_longest_first(
    page: Page, markers: list[str], text: str, found: list[str]
) -> None:
    script = """async ([markers, text]) => {
      const {patternOf, marked} = await import("/static/markers.js");
      return marked(text, patternOf(markers)).filter((node) => node.nodeType).map((node) => node.textContent);
    }"""
    assert page.evaluate(script, [markers, text]) == found


# ── the stream ──


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("a天😀\r\n:é")), data=st.data())
def test_lines_survive_any_cut_of_the_bytes(page: Page, text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    pieces = [list(raw[start:end]) for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    script = """async (pieces) => {
      const {lines} = await import("/static/server.js");
      const body = new ReadableStream({start(sink) {
        for (const piece of pieces) sink.enqueue(Uint8Array.from(piece));
        sink.close();
      }});
      const found = [];
      for await (const line of lines(body)) found.push(line);
      return found;
    }"""
    expected = [line.removesuffix("\r") for line in text.split("\n")]
    last = text.rsplit("\n", 1)[-1]  # one without an end is as it came, and an empty one is none
    assert page.evaluate(script, pieces) == expected[:-1] + ([last] if last else [])


def test_a_rare_character_and_a_flood_of_text(page: Page, backend: ScriptedBackend) -> None:
    long = ("𠮷野家门前的灯亮了，罢了。" * 40 + "\n") * (LONG // 521)
    backend.texts, backend.piece_chars = {BASE: (long,), "guicheng": (long,)}, 1
    page.get_by_label("Length (tokens)").fill("4000")
    run(page)
    assert texts(page) == [long[:4000]] * 2
    expect(column(page, "base").locator("mark")).to_have_count(long[:4000].count("罢了"))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


# ── blind rounds ──


def test_a_blind_round_tells_nothing_before_the_choice(page: Page, backend: ScriptedBackend) -> None:
    backend.hold_after = {BASE: 2, "guicheng": 5}
    blind(page)
    page.get_by_label("keep", exact=True).check()
    page.keyboard.press("Control+Enter")
    expect(page.locator(".cell .prose").first).to_have_text(re.compile("^.{13}$"))
    expect(page.locator("#picks")).to_be_hidden()
    # The adapter is ahead, and that is not shown.
    assert sorted(texts(page)) == sorted([PLAIN[0][:6], MANNERED[0][:6]])
    assert_tells_nothing(page)
    backend.released = True
    over(page)
    assert sorted(texts(page)) == sorted([PLAIN[0], MANNERED[0]])
    assert_tells_nothing(page)
    expect(page.get_by_role("status")).to_have_text("Which column is the author's? Now choose.")


def assert_tells_nothing(page: Page) -> None:
    html = page.locator("#columns").evaluate("element => element.outerHTML")
    html += page.locator("#bar").evaluate("element => element.outerHTML")
    known = [BASE, "guicheng", digest_of(BASE)[:6], digest_of("guicheng")[:6], "800", "<mark", "tokens/s", "per 1,000"]
    assert [word for word in known if word in html] == []
    assert page.locator("section.column h2").all_text_contents() == ["Column A", "Column B"]
    assert page.locator("#export").get_attribute("aria-disabled") == "true"


def test_a_blind_round_does_not_show_which_column_ended_first(page: Page, backend: ScriptedBackend) -> None:
    backend.hold_after = {BASE: 2}
    blind(page)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_have_text("Writing: 1 of 2 done.")
    expect(page.locator(".cell.running")).to_have_count(2)
    backend.released = True
    over(page)


def test_a_blind_text_never_ends_in_half_a_character(page: Page, backend: ScriptedBackend) -> None:
    backend.texts = {BASE: ("一二三四",), "guicheng": ("一𠮷三四",)}
    backend.hold_after, backend.piece_chars = {BASE: 2}, 1
    blind(page)
    page.keyboard.press("Control+Enter")
    expect(page.locator(".cell .prose", has_text="二")).to_have_text(f"{PROMPT}一二")
    assert sorted(texts(page)) == ["一", "一二"]


def test_blind_columns_stand_in_either_order(page: Page) -> None:
    blind(page)
    page.get_by_label("keep", exact=True).check()
    orders = set()
    for _ in range(24):
        run(page)
        orders.add(texts(page)[0] == PLAIN[0])
        if len(orders) == 2:
            return
    raise AssertionError("the order was the same 24 times, by chance once in 8 million")


def test_a_choice_reveals_and_is_counted(page: Page) -> None:
    blind(page)
    for expected in (True, False):
        run(page)
        seed = int(page.get_by_label("Seeds").input_value())
        base_first = texts(page)[0] == PLAIN[seed % 2]
        own, other = ("2", "1") if base_first else ("1", "2")
        page.get_by_label("Seeds").press("1")  # in a field a digit is a digit
        expect(page.locator("#picks")).to_be_visible()
        page.locator("h1").click()
        page.keyboard.press(own if expected else other)
        expect(page.get_by_role("status")).to_have_text(
            "Right: this is guicheng." if expected else "No, that was the base. The author's: guicheng."
        )
        heads = sorted(heading[4:] for heading in page.locator("section.column h2").all_text_contents())
        assert heads == ["base", "guicheng"]
        expect(column(page, "guicheng").locator(".tag.right")).to_have_text("adapter")
        expect(column(page, "guicheng" if expected else "base").locator(".tag.pick")).to_have_text("your choice")
        expect(page.locator("mark").first).to_be_visible()
    page.reload()
    expect(page.locator("#score")).to_have_text("Right 1 of 2; by chance about 1.0.")
    rows = sorted(page.locator("#tally tbody tr").evaluate_all("rows => rows.map(row => row.innerText)"))
    assert rows == ["base\t1\t1.0", f"guicheng {digest_of('guicheng')[:12]}\t1\t1.0"]
    page.get_by_role("button", name="Start over").click()
    expect(page.locator("#tally")).to_be_hidden()
    page.reload()
    expect(page.locator("#picker input").first).to_be_visible()
    expect(page.locator("#tally")).to_be_hidden()


def test_a_blind_round_draws_new_seeds_unless_they_are_kept(page: Page, backend: ScriptedBackend) -> None:
    blind(page)
    run(page)
    assert backend.seen[0].samplings[0].seed != 42
    page.get_by_label("Seeds").fill("5")
    page.get_by_label("keep", exact=True).check()
    run(page)
    assert backend.seen[-1].samplings[0].seed == 5


def test_a_round_that_breaks_is_not_counted(page: Page, backend: ScriptedBackend) -> None:
    backend.failing = {"guicheng": (3, RequestError("internal_error", "out of luck with guicheng"))}
    blind(page)
    run(page)
    expect(page.get_by_role("status")).to_contain_text("This round broke off and is not counted.")
    expect(page.locator("#picks")).to_be_hidden()
    expect(page.locator("#tally")).to_be_hidden()
    assert sorted(page.locator("section.column h2").all_text_contents())[0][4:] in (BASE, "guicheng")


def test_blind_needs_the_base_and_an_adapter(page: Page, backend: ScriptedBackend) -> None:
    blind(page)
    page.locator("#picker input[value=base]").uncheck()
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_have_text("Blind mode needs the base and at least one adapter.")
    assert backend.seen == []


# ── links and files ──


def test_a_link_restores_everything_and_runs_nothing(
    page: Page, context: BrowserContext, backend: ScriptedBackend
) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("The beginning").fill("第一行 & #100%\n“第二行”")
    page.get_by_label("Seeds").fill("1, 2")
    page.get_by_label("Temperature").fill("0, 1.2")
    page.get_by_label("Length (tokens)").fill("77")
    page.get_by_label("Adapter scale").fill("0.25")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("top-p").fill("0.5")
    page.get_by_label("top-k").fill("9")
    page.get_by_label("Repetition penalty").fill("1.1")
    blind(page)
    page.get_by_label("Markers", exact=True).uncheck()
    page.get_by_label("keep", exact=True).check()
    page.locator("#picker input[value='older']").check()
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("status")).to_contain_text("The link is copied")
    link = page.evaluate("navigator.clipboard.readText()")
    script = "() => [...new FormData(document.querySelector('form'))].map(([name, value]) => `${name}=${value}`)"
    other = opened(context, link)
    expect(other.get_by_role("status")).to_have_text("Settings taken from the link.")
    assert other.evaluate(script) == page.evaluate(script)
    assert "model=older" in other.evaluate(script)
    assert backend.seen == []


def test_a_link_says_what_is_missing_and_what_has_changed(
    context: BrowserContext, server: Server, backend: ScriptedBackend
) -> None:
    page = opened(context, f"{server.url}#model=base&model=guicheng~000000000000&model=lost~1&seeds=3")
    status = page.get_by_role("status")
    expect(status).to_contain_text("Not served here: lost.")
    expect(status).to_contain_text("Another version than when the link was made: guicheng.")
    expect(page.locator("#picker input:checked")).to_have_count(2)
    expect(page.get_by_label("Seeds")).to_have_value("3")
    page.evaluate("location.hash = '#seeds=8&model=base'")
    expect(page.get_by_label("Seeds")).to_have_value("8")
    expect(page.locator("#picker input:checked")).to_have_count(1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r")))
def test_any_beginning_survives_its_link(page: Page, prompt: str) -> None:
    script = """async (prompt) => {
      const {toFragment, fromFragment} = await import("/static/settings.js");
      const form = document.querySelector("form");
      form.elements.prompt.value = prompt;
      const hash = new URL(toFragment(form, []), location.href).hash;
      form.elements.prompt.value = "";
      fromFragment(form, hash);
      return form.elements.prompt.value;
    }"""
    assert page.evaluate(script, prompt) == prompt


def test_what_is_shown_can_be_saved(page: Page, tmp_path: Path, backend: ScriptedBackend) -> None:
    page.get_by_label("Seeds").fill("0, 1")
    page.get_by_label("Length (tokens)").fill("60")
    run(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as JSONL").click()
    assert re.fullmatch(r"raystyle-\d+\.jsonl", download.value.suggested_filename)
    download.value.save_as(tmp_path / "saved")
    rows = [json.loads(line) for line in (tmp_path / "saved").read_text("utf-8").splitlines()]
    assert len(rows) == 4
    assert time.time() - 60 < time.mktime(time.strptime(rows[0]["time"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    expected = {
        "prompt": PROMPT,
        "model": "guicheng",
        "digest": digest_of("guicheng"),
        "seed": 1,
        "temperature": 0.8,
        "scale": 1,
        "top_p": 0.95,
        "top_k": 0,
        "repetition_penalty": 1,
        "max_tokens": 60,
        "text": MANNERED[1][:60],
        "finish_reason": "length",
        "error": None,
        "blind": False,
        "picked": None,
    }
    assert {key: value for key, value in rows[3].items() if key != "time"} == expected


def test_what_is_saved_says_what_failed_and_what_was_chosen(page: Page) -> None:
    script = """async () => {
      const {begin, take, toJsonLines} = await import("/static/run.js");
      const cells = ["base", "style"].map((model, cell) => ({ cell, model, lora_scale: 1, seed: 1, temperature: 1 }));
      const run = begin({ cells, prompt: "", created: 1 }, { body: { top_p: 0.5, max_tokens: 9 }, blind: true });
      take(run, { object: "compare.error", cells: [1], error: { message: "out of luck" } }, 0);
      const before = toJsonLines(run);
      run.picked = run.columns.find(({ model }) => model === "base");
      return [before, toJsonLines(run)];
    }"""
    before, after = (
        {row["model"]: (row["blind"], row["picked"], row["error"]) for row in map(json.loads, lines.splitlines())}
        for lines in page.evaluate(script)
    )
    assert before == {"base": (True, None, None), "style": (True, None, "out of luck")}
    assert after == {"base": (True, True, None), "style": (True, False, "out of luck")}


# ── hands ──


def test_esc_stops_and_frees_the_rows(page: Page, backend: ScriptedBackend) -> None:
    backend.hold_after = {BASE: 2, "guicheng": 2}
    page.keyboard.press("Control+Enter")
    expect(page.locator(".cell .prose").nth(1)).to_have_text(PROMPT + MANNERED[0][:6])
    page.keyboard.press("Escape")
    over(page)
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    assert page.locator(".state").all_text_contents() == ["stopped", "stopped"]
    wait_until(lambda: backend.left == 2)
    backend.hold_after = {}
    run(page)
    assert texts(page) == [PLAIN[0], MANNERED[0]]


def test_an_input_method_keeps_its_enter_and_esc(page: Page, backend: ScriptedBackend) -> None:
    page.get_by_label("The beginning").evaluate(
        """field => field.dispatchEvent(new KeyboardEvent("keydown",
             {key: "Enter", ctrlKey: true, isComposing: true, bubbles: true}))"""
    )
    page.wait_for_timeout(200)
    assert backend.seen == []


def test_everything_has_a_name_in_both_languages(browser: Browser, server: Server) -> None:
    context = browser.new_context(locale="zh-TW")
    page = opened(context, server.url)
    page.locator("details.more").evaluate("details => details.open = true")
    names = {}
    for language, lang in (("中文", "zh-Hans"), ("English", "en")):
        page.get_by_role("button", name=language).click()
        assert page.locator("html").get_attribute("lang") == lang
        controls = page.locator("button:visible, input:visible, textarea, select:visible")
        names[lang] = controls.evaluate_all(
            "all => all.map(one => one.ariaLabel || one.labels?.[0]?.innerText || one.innerText)"
        )
        assert all(name.strip() for name in names[lang])
        assert "undefined" not in page.locator("body").inner_text()
        assert page.title().endswith("· raystyle")
    assert len(names["en"]) == len(names["zh-Hans"]) > 15
    page.reload()
    expect(page.get_by_role("button", name="Continue")).to_be_visible()  # kept, though the browser is Chinese
    context.close()


def test_both_languages_have_the_same_words(page: Page) -> None:
    source = page.request.get(page.url + "static/words.js").text()
    english, chinese = source.split("\n  zh: {", 1)
    names = [re.findall(r"^    (\w+): (\(.*?\))?", half, re.MULTILINE) for half in (english, chinese)]
    assert names[0] == names[1] and len(names[0]) > 50
    html = (Path(page_backend.__file__).parents[2] / "raystyle/serving/playground/index.html").read_text("utf-8")
    assert set(re.findall(r'data-(?:word|label)="(\w+)"', html)) <= {name for name, _ in names[0]}


# ── what is served ──


def test_many_checkpoints_the_newest_first_and_all_at_once(
    context: BrowserContext, server: Server, backend: ScriptedBackend
) -> None:
    steps = [adapter(f"long@step-{step}", step, created=300) for step in range(100, 3001, 100)]
    backend.cards = [*page_backend.usual_cards(), *steps]
    page = opened(context, server.url)
    chips = page.get_by_role("group", name="Checkpoints of long").locator("input")
    assert chips.evaluate_all("all => all.map(one => one.value)") == [card.name for card in reversed(steps)]
    assert page.locator("#picker .run input").first.get_attribute("value") == "long@step-3000"  # the newest run first
    expect(page.locator("#picker input:checked")).to_have_count(2)  # the base and the newest
    page.get_by_role("button", name="all checkpoints").first.click()
    expect(page.locator("#picker input:checked")).to_have_count(31)
    page.get_by_label("Length (tokens)").fill("20")
    run(page)
    expect(page.locator("section.column")).to_have_count(31)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="no checkpoints").click()
    expect(page.locator("#picker input:checked")).to_have_count(1)


def test_what_is_refused_and_what_is_not_verified_is_said(page: Page) -> None:
    page.get_by_text("1 adapter is not served").click()
    expect(page.locator("#refused li")).to_contain_text("stranger: its base is another one")
    expect(page.locator("label.model", has_text="older")).to_contain_text("base not verified")
    expect(page.locator("label.model", has_text="guicheng")).not_to_contain_text("base not verified")
    page.locator("#picker input[value='older']").check()
    run(page)
    expect(column(page, "older").locator(".tag.warn")).to_have_text("base not verified")


def test_the_base_alone(context: BrowserContext, server: Server, backend: ScriptedBackend) -> None:
    backend.cards, backend.can_scale = backend.cards[:1], False
    page = opened(context, server.url)
    expect(page.locator("#picker")).to_contain_text("No adapters are served yet")
    expect(page.get_by_label("Adapter scale")).to_be_hidden()
    run(page)
    assert texts(page) == [PLAIN[0]]
    expect(page.locator(".density")).to_have_count(0)


def test_new_checkpoints_come_with_a_refresh_and_the_choice_stays(page: Page, backend: ScriptedBackend) -> None:
    page.locator("#picker input[value='older']").check()
    backend.cards.append(adapter("guicheng@step-1000", 1000, created=200))
    page.wait_for_timeout(1100)  # the API keeps a listing for a second
    page.get_by_role("button", name="Refresh").click()
    expect(page.locator("#picker input[value='guicheng@step-1000']")).to_be_visible()
    expect(page.locator("#picker input:checked")).to_have_count(3)


# ── hostile text ──


def test_nothing_that_is_said_becomes_html(context: BrowserContext, server: Server, backend: ScriptedBackend) -> None:
    evil = '<img src=x onerror="document.title=666"><script>document.title=666</script>'
    mean = adapter(f"mean{evil}", 3, 900, markers=(evil, "&amp;", "</mark>"))
    step = adapter(f"mean{evil}@step-1", 1, 900)
    backend.cards = [Card(BASE, "base", digest_of(BASE)), mean, step, adapter(evil, refused=evil)]
    backend.texts = {BASE: (f"{evil}&amp;</mark>",), mean.name: (f"一{evil}二",)}
    backend.failing = {step.name: (1, RequestError("internal_error", evil))}
    page = opened(context, server.url)
    page.get_by_role("button", name="all checkpoints").click()
    page.get_by_label("The beginning").fill(evil)
    run(page)
    assert page.locator(".cell .prose").first.text_content() == f"{evil}{evil}&amp;</mark>"
    expect(page.locator("section.column").nth(1).locator("mark")).to_have_text([evil])
    expect(page.locator(".wrong .state")).to_have_text(f"failed: {evil}")
    expect(page.locator("#refused li")).to_have_text(f"{evil}: {evil}")
    assert page.locator("img, body script, [onerror]").count() == 0
    assert page.title() == "Side by side · raystyle"


# ── what goes wrong ──


def test_one_model_fails_and_the_others_go_on(page: Page, backend: ScriptedBackend) -> None:
    backend.failing = {"guicheng": (2, RequestError("internal_error", "the replica died"))}
    run(page)
    expect(column(page, "guicheng").locator(".state")).to_have_text("failed: the replica died")
    assert texts(page) == [PLAIN[0], MANNERED[0][:6]]
    expect(column(page, "base").locator(".state")).to_have_text("ended by itself")
    expect(page.get_by_role("status")).to_have_text("Some of the texts failed.")


def test_a_model_that_vanished(page: Page, backend: ScriptedBackend) -> None:
    backend.cards = [card for card in backend.cards if card.name != "guicheng"]
    page.wait_for_timeout(1100)  # the API keeps a listing for a second
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_contain_text("there is no model 'guicheng'")
    expect(page.get_by_role("status")).to_contain_text("The list is refreshed.")
    expect(page.locator("#picker input[value='guicheng']")).to_have_count(0)
    run(page)
    assert texts(page) == [PLAIN[0]]


def test_a_full_server_says_when_to_come_back(context: BrowserContext) -> None:
    backend = ScriptedBackend(hold_after={BASE: 1})
    server = Server(backend, max_batch_size=1, max_queue=1)
    try:
        first, second = opened(context, server.url), opened(context, server.url)
        first.keyboard.press("Control+Enter")
        expect(first.locator(".cell .prose").first).to_have_text(PROMPT + PLAIN[0][:3])
        second.get_by_label("The beginning").fill("别的")
        second.keyboard.press("Control+Enter")
        expect(second.get_by_role("status")).to_have_text("The server is busy. Try again in 1 s.")
        expect(second.get_by_label("The beginning")).to_have_value("别的")
        first.keyboard.press("Escape")
        wait_until(lambda: backend.left == 1)
        backend.released = True
        run(second)
        assert len(texts(second)) == 2
    finally:
        server.stop()


def test_a_server_that_dies_in_the_middle_and_stays_away(context: BrowserContext) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, page_backend.__file__, str(port)])
    try:
        wait_until(lambda: answers(port))
        page = opened(context, f"http://127.0.0.1:{port}/")
        page.keyboard.press("Control+Enter")
        expect(page.locator(".cell .prose").nth(1)).to_have_text(re.compile(".{20}"))
    finally:
        process.kill()
        process.wait(timeout=10)
    over(page)
    expect(page.get_by_role("status")).to_have_text("The connection broke off; what came is still here.")
    assert page.locator(".wrong .state").all_text_contents() == ["broken off", "broken off"]
    kept = texts(page)
    assert all(PLAIN[0].startswith(kept[0]) and MANNERED[0].startswith(kept[1]) and text for text in kept)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_contain_text("The server does not answer.")
    assert texts(page) == kept
    expect(page.get_by_label("The beginning")).to_have_value(PROMPT)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_stream_that_ends_too_early_is_broken(context: BrowserContext, server: Server) -> None:
    cells = [{"cell": 0, "model": "base", "adapter_digest": None, "seed": 1, "temperature": 1, "lora_scale": 1}]
    start = {"object": "compare.start", "id": "c", "created": 1, "prompt": PROMPT, "cells": cells}
    delta = {"object": "compare.delta", "cell": 0, "text": "半句", "finish_reason": None}
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in (start, delta))
    # Before the page is there: on a busy machine, a request right after the first route of a page was seen to get past it.
    context.route("**/v1/compare", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    page = opened(context, server.url)
    run(page)
    assert texts(page) == ["半句"]
    expect(page.locator(".state")).to_have_text("broken off")
    expect(page.get_by_role("status")).to_have_text("The connection broke off; what came is still here.")


def test_a_model_that_is_still_loading(context: BrowserContext, server: Server, backend: ScriptedBackend) -> None:
    backend.not_ready = RequestError("unavailable", "the model is loading", retry_after_s=1)
    page = context.new_page()
    page.goto(server.url)
    expect(page.get_by_role("status")).to_have_text("The model is not ready yet; looking again soon.")
    backend.not_ready = None
    expect(page.locator("#picker input").first).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("")


def test_however_often_somebody_asks_there_is_one_that_looks_again(
    context: BrowserContext, server: Server, backend: ScriptedBackend
) -> None:
    backend.not_ready = RequestError("unavailable", "the model is loading", retry_after_s=1)
    page = context.new_page()
    page.goto(server.url)
    expect(page.get_by_role("status")).to_have_text("The model is not ready yet; looking again soon.")
    for _ in range(8):
        page.get_by_role("button", name="Continue").click()
        page.wait_for_timeout(50)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(3500)
    assert 1 <= len(asked) <= 4


def test_a_model_that_was_there_is_looked_for_again(page: Page, backend: ScriptedBackend) -> None:
    backend.not_ready = RequestError("unavailable", "it is gone", retry_after_s=1)
    page.wait_for_timeout(1100)  # the API keeps a listing for a second
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_have_text("The model cannot be reached just now. Try again in a moment.")
    page.get_by_role("button", name="Refresh").click()
    expect(page.get_by_role("status")).to_have_text("The model is not ready yet; looking again soon.")
    backend.not_ready = None
    expect(page.get_by_role("status")).to_have_text("")


def test_a_key_that_is_not_known(context: BrowserContext, server: Server) -> None:
    error = {"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}}
    context.route("**/v1/compare", lambda route: route.fulfill(status=401, json=error))
    page = opened(context, server.url)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_contain_text("The server asks for a key. Reload the page")


@pytest.mark.parametrize(
    ("label", "value", "said"),
    [
        ("Seeds", "1, x", "“Seeds” must be whole numbers from 0."),
        ("Seeds", "9007199254740993", "“Seeds” must be whole numbers from 0."),
        ("Seeds", "", "“Seeds” must be whole numbers from 0."),
        ("Length (tokens)", "1 2", "“Length (tokens)” must be whole numbers from 0."),
        ("Temperature", "warm", "“Temperature” must be numbers."),
        ("Temperature", "3", "temperatures"),  # the server's own words
        ("top-p", "7", "top_p"),
    ],
)
def test_a_wrong_value_is_said_and_shown(
    page: Page, backend: ScriptedBackend, label: str, value: str, said: str
) -> None:
    page.locator("details.more").evaluate("details => details.open = true")
    field = page.get_by_label(label)
    field.fill(value)
    page.locator("details.more").evaluate("details => details.open = false")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_contain_text(said)
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-invalid", "true")
    assert backend.seen == []


# ── looks ──

# Every text's contrast with what is behind it (WCAG 2.2, 1.4.3); disabled controls are exempt.
CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const over = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((byte) => byte / 255);
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("[aria-disabled=true]")) continue;
    const behind = [];
    for (let e = element; e; e = e.parentElement) behind.unshift(getComputedStyle(e).backgroundColor);
    const [a, b] = [luminance(over(behind)), luminance(over([...behind, getComputedStyle(element).color]))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${walker.currentNode.data.trim().slice(0, 20)}`);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_told_from_its_background(browser: Browser, server: Server, scheme: Any) -> None:
    context = browser.new_context(color_scheme=scheme, locale="en-US")
    page = opened(context, server.url)
    page.locator("#picker input[value='older']").check()
    page.locator("#picker input[value='guicheng@step-600']").check()
    page.get_by_text("1 adapter is not served").click()
    blind(page)
    run(page)
    assert page.evaluate(CONTRAST) == []
    page.locator("#picks button").first.click()
    assert page.evaluate(CONTRAST) == []
    context.close()


@pytest.mark.parametrize("language", ["zh-CN", "en-US"])
def test_a_phone_shows_all_without_scrolling_sideways(
    browser: Browser, server: Server, backend: ScriptedBackend, language: str
) -> None:
    long = "a-very-long-name-of-an-adapter-that-somebody-thought-up-without-any-break-at-all"
    backend.cards += [adapter(long, 123456, created=900, base_verified=False), adapter(f"{long}@step-1", created=900)]
    backend.cards += [adapter(f"{long}-refused", refused="x" * 200)]
    context = browser.new_context(
        viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, locale=language
    )
    page = opened(context, server.url)
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    page.locator("[name=blind]").check()
    run(page)
    page.locator("#picks button").first.click()
    inside = "[...document.querySelectorAll('body *')].filter(e => !e.closest('#columns, #tally, .hidden'))"
    wide = page.evaluate(f"{inside}.filter(e => e.getBoundingClientRect().right > 360.5).map(e => e.outerHTML)")
    assert wide == [] and page.evaluate("document.documentElement.scrollWidth") == 360
    width = page.locator("section.column").first.evaluate("e => e.getBoundingClientRect().width")
    assert 250 < width < 330  # the next one looks in from the side
    context.close()


def test_controls_and_heads_stay_in_sight(page: Page, backend: ScriptedBackend) -> None:
    backend.texts = {BASE: (PLAIN[0] * 20,), "guicheng": (MANNERED[0] * 20,)}
    page.get_by_label("Length (tokens)").fill("2000")
    run(page)
    page.evaluate("scrollTo(0, document.body.scrollHeight - innerHeight - 300)")
    tops = (
        "() => ['#bar', '.column header'].map(e => Math.round(document.querySelector(e).getBoundingClientRect().top))"
    )
    height = page.locator("#bar").evaluate("bar => Math.round(bar.getBoundingClientRect().height)")
    assert page.evaluate("scrollY") > 500
    assert page.evaluate(tops) == [0, height]


def test_nothing_moves_for_those_who_ask_for_that(browser: Browser, server: Server, backend: ScriptedBackend) -> None:
    backend.hold_after = {BASE: 1}
    for motion, animation in (("no-preference", "blink"), ("reduce", "none")):
        context = browser.new_context(reduced_motion=motion)  # type: ignore[arg-type]
        page = opened(context, server.url)
        page.keyboard.press("Control+Enter")
        tail = page.locator(".running .tail").first
        expect(tail).to_be_visible()
        assert tail.evaluate("e => getComputedStyle(e, '::after').animationName") == animation
        page.keyboard.press("Escape")
        context.close()
