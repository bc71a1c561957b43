// Blind rounds over all visits: how often the person was right, how often each model was taken for the author.

import { byId, el } from "./dom.js";
import * as keep from "./keep.js";

const KEPT = "raystyle.tally";

/** `models` are {picked, chance} by name; `chance` is how often picking at random would have been right, or picked it. */
export const EMPTY = { total: 0, right: 0, chance: 0, models: {} };

export function load() {
  const kept = keep.get(KEPT);
  return kept === null ? EMPTY : JSON.parse(kept);
}

/** Count a round: the columns' names, which of them are the author's, and the one picked. */
export function count(tally, names, authors, picked) {
  const models = { ...tally.models };
  for (const name of names) {
    const { picked: times, chance } = models[name] ?? { picked: 0, chance: 0 };
    models[name] = { picked: times + (name === picked ? 1 : 0), chance: chance + 1 / names.length };
  }
  return {
    total: tally.total + 1,
    right: tally.right + (authors.includes(picked) ? 1 : 0),
    chance: tally.chance + authors.length / names.length,
    models,
  };
}

export function save(tally) {
  keep.set(KEPT, JSON.stringify(tally));
}

export function show(tally, words) {
  byId("tally").hidden = !tally.total;
  const note = keep.lasting ? "" : ` ${words.notKept}`;
  byId("score").textContent = words.score(tally.right, tally.total, tally.chance.toFixed(1)) + note;
  const rows = Object.entries(tally.models).map(([name, { picked, chance }]) => {
    const number = (text) => el("td", { className: "n" }, text);
    return el("tr", {}, el("td", {}, name), number(String(picked)), number(chance.toFixed(1)));
  });
  byId("tally").querySelector("tbody").replaceChildren(...rows);
}
