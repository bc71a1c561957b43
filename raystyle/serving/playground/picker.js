// Which models continue: the base, then each run's adapter with its checkpoints, the newest first.

import { byId, el } from "./dom.js";
import { short } from "./settings.js";

// The names chosen, which survive a new listing.
const chosen = new Set();
let cards = [];

/** Show a listing's models, and below them those that are refused. */
export function show(listing, words) {
  cards = listing.data;
  for (const id of [...chosen]) if (!cards.some((card) => card.id === id)) chosen.delete(id);
  const adapters = cards.filter(({ kind }) => kind !== "base");
  const focused = document.activeElement?.value;
  byId("picker").replaceChildren(
    ...cards.filter(({ kind }) => kind === "base").map((card) => wholeLine(card, words)),
    ...runsOf(adapters).map((run) => runGroup(run, words)),
    ...(adapters.length ? [] : [el("p", { className: "note" }, words.noAdapters)]),
  );
  inputs().find(({ value }) => value === focused)?.focus();
  const refused = listing.refused.map(({ id, reason }) => el("li", {}, el("b", {}, id), `: ${reason}`));
  byId("refused").hidden = !refused.length;
  byId("refused").querySelector("summary").textContent = words.refused(refused.length);
  byId("refused").querySelector("ul").replaceChildren(...refused);
}

/** Choose these models, as far as they are served, and no others. */
export function choose(ids) {
  chosen.clear();
  for (const id of ids) if (cards.some((card) => card.id === id)) chosen.add(id);
  refresh();
}

/** The chosen models' cards, in the order in which they are shown. */
export function chosenCards() {
  return inputs().filter(({ checked }) => checked).map(({ value }) => cards.find(({ id }) => id === value));
}

function toggle(id, add) {
  if (add) chosen.add(id);
  else chosen.delete(id);
}

function inputs() {
  return [...byId("picker").querySelectorAll("input")];
}

function refresh() {
  for (const input of inputs()) input.checked = chosen.has(input.value);
  for (const button of byId("picker").querySelectorAll("button")) button.update();
}

function runGroup({ name, adapter, checkpoints }, words) {
  const group = el("div", { className: "run" });
  if (adapter) group.append(wholeLine(adapter, words));
  if (!checkpoints.length) return group;
  const label = words.checkpoints(name);
  const ids = checkpoints.map(({ id }) => id);
  const chips = el("div", { className: "chips", role: "group", ariaLabel: label });
  chips.append(...checkpoints.map((card) => chip(card, words)));
  group.append(el("div", { className: "head" }, el("span", { className: "soft" }, label), allButton(ids, words)), chips);
  return group;
}

function allButton(ids, words) {
  const button = el("button", { type: "button", className: "quiet" });
  const hasAll = () => ids.every((id) => chosen.has(id));
  button.update = () => (button.textContent = hasAll() ? words.none : words.all);
  button.addEventListener("click", () => {
    const add = !hasAll();
    for (const id of ids) toggle(id, add);
    refresh();
  });
  button.update();
  return button;
}

function wholeLine(card, words) {
  const kind = card.kind === "base" ? tag(words.base) : el("code", {}, short(card.digest));
  const step = card.step === null ? null : tag(words.step(card.step));
  return el("label", { className: "model" }, checkbox(card), el("b", {}, card.id), kind, step, warning(card, words));
}

function chip(card, words) {
  const title = `${card.id} · ${short(card.digest)}`;
  const step = card.step === null ? card.id : String(card.step);
  const input = checkbox(card);
  if (card.step !== null) input.ariaLabel = words.step(card.step);
  return el("label", { className: "chip", title }, input, el("span", {}, step), warning(card, words));
}

function checkbox(card) {
  const input = el("input", { type: "checkbox", name: "model", value: card.id, checked: chosen.has(card.id) });
  input.addEventListener("change", () => {
    toggle(card.id, input.checked);
    refresh();
  });
  return input;
}

/** Runs by name, the newest first: an adapter `style` with its checkpoints `style@…`, the latest step first. */
function runsOf(adapters) {
  const runs = new Map();
  for (const card of adapters) {
    const name = card.id.split("@")[0];
    if (!runs.has(name)) runs.set(name, { name, adapter: null, checkpoints: [], created: 0 });
    const run = runs.get(name);
    run.created = Math.max(run.created, card.created ?? 0);
    if (card.id === name) run.adapter = card;
    else run.checkpoints.push(card);
  }
  for (const run of runs.values()) run.checkpoints.sort((a, b) => (b.step ?? 0) - (a.step ?? 0));
  return [...runs.values()].sort((a, b) => b.created - a.created);
}

function tag(text) {
  return el("span", { className: "tag" }, text);
}

function warning(card, words) {
  return card.base_verified ? null : el("span", { className: "tag warn" }, words.unverified);
}
