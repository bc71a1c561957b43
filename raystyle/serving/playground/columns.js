// A run on the page: columns of texts side by side. While a run is hidden, nothing here tells whose a column is.

import { byId, el } from "./dom.js";
import { density, marked } from "./markers.js";
import { isHidden, isOver, shownText, speed } from "./run.js";
import { short } from "./settings.js";

/** Draw a run from nothing. `cards` are by name what the listing says; `pattern` finds the markers, or is null. */
export function draw(run, { cards, pattern, words }) {
  const letters = run.blind ? run.columns.map((_, index) => letter(index)) : null;
  const hidden = isHidden(run);
  const seen = hidden ? null : pattern;
  // Kana tells Japanese; a browser picks other shapes for its Han characters.
  const han = /\p{Script=Han}/u.test(run.prompt) && !/[\p{Script=Hiragana}\p{Script=Katakana}]/u.test(run.prompt);
  const drawn = run.columns.map((column, index) => {
    const name = hidden ? words.column(letters[index]) : column.model;
    const heading = el("h2", {}, letters && !hidden ? `${letters[index]} · ${name}` : name);
    const about = el("p", { className: "about" });
    const cells = column.cells.map((cell) => {
      const prose = el("div", { className: "prose", lang: han ? "zh-Hans" : "" });
      return { cell, prose, foot: el("p", { className: "foot" }), element: el("div", { className: "cell" }) };
    });
    for (const { prose, foot, element } of cells) element.append(prose, foot);
    const section = el("section", { className: "column" }, el("header", {}, heading, about));
    section.append(...cells.map(({ element }) => element));
    section.ariaLabel = name;
    return { column, section, about, cells };
  });
  byId("columns").replaceChildren(...drawn.map(({ section }) => section));
  byId("columns").style.setProperty("--rows", Math.max(...run.columns.map(({ cells }) => cells.length)));

  const writers = new Map();
  for (const { cells } of drawn) {
    for (const { cell, prose, foot, element } of cells) {
      const write = writer(prose, run.prompt, seen);
      writers.set(cell, () => {
        write(shownText(run, cell));
        // While hidden all end together: which finished first would tell whose it is.
        element.classList.toggle("running", isHidden(run) ? !isOver(run) : cell.state === "running");
        const wrong = cell.state === "failed" || cell.state === "broken";
        element.classList.toggle("wrong", wrong);
        foot.replaceChildren(...footOf(run, cell, words));
      });
    }
  }

  function refresh(cell) {
    writers.get(cell)();
  }

  function refreshHeads() {
    for (const { column, about } of drawn) about.replaceChildren(...aboutOf(run, column, { cards, pattern, words }));
  }

  for (const cell of run.cells) refresh(cell);
  refreshHeads();
  return { refresh, refreshHeads };
}

export function letter(index) {
  return index < 26 ? String.fromCharCode(65 + index) : `${letter(Math.floor(index / 26) - 1)}${letter(index % 26)}`;
}

/** Writes a growing text after its prompt. No marker crosses a line break, so only the last line is ever drawn again. */
function writer(prose, prompt, pattern) {
  const tail = el("span", { className: "tail" });
  prose.replaceChildren(el("span", { className: "pale" }, prompt), tail);
  let settled = 0;
  return (text) => {
    const lineStart = text.lastIndexOf("\n") + 1;
    if (lineStart > settled) {
      tail.before(...marked(text.slice(settled, lineStart), pattern));
      settled = lineStart;
    }
    tail.replaceChildren(...marked(text.slice(settled), pattern));
  };
}

function footOf(run, cell, words) {
  const hidden = isHidden(run);
  const parts = [`${words.seed} ${cell.seed}`, `${words.temperature} ${cell.temperature}`];
  const pace = speed(cell);
  if (!hidden && pace !== null) parts.push(words.speed(pace.toFixed(1)));
  const state = cell.state === "failed" ? words.failed(cell.message) : words.states[cell.state];
  if (state && (!hidden || isOver(run))) parts.push(el("span", { className: "state" }, state));
  return parts.flatMap((part, index) => (index ? [" · ", part] : [part]));
}

function aboutOf(run, column, { cards, pattern, words }) {
  if (isHidden(run)) return [];
  const card = cards.get(column.model);
  const parts = [];
  if (run.picked === column) parts.push(el("span", { className: "tag pick" }, words.yourPick));
  if (run.blind && card.kind !== "base" && column.scale !== 0) parts.push(el("span", { className: "tag right" }, words.author));
  if (!card.base_verified) parts.push(el("span", { className: "tag warn" }, words.unverified));
  if (card.kind === "base") parts.push(el("span", {}, words.base));
  if (card.step !== null) parts.push(el("span", {}, words.step(card.step)));
  if (column.scale !== 1) parts.push(el("span", {}, `${words.scale} ${column.scale}`));
  if (column.digest) parts.push(el("code", {}, short(column.digest)));
  const rate = density(column.cells.map(({ text }) => text), pattern);
  if (rate !== null) parts.push(el("span", { className: "density" }, words.density(rate.toFixed(1))));
  return parts;
}
