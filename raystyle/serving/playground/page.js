// What the page's parts share: what is known, and the line that tells how things stand.

import { byId } from "./dom.js";
import * as keep from "./keep.js";
import * as tallies from "./tally.js";
import { preferredLanguage, speak } from "./words.js";

export const form = byId("form");

export const page = {
  words: speak(preferredLanguage(keep), keep),
  listing: null,
  run: null,
  cards: new Map(), // of the run's models, by name, as they were when it began
  drawn: null, // what columns.js returned for the run
  stopper: null, // an AbortController while a run is going on
  tally: tallies.load(),
  status: { text: () => "", wrong: false },
};

/** Say how things stand; `text` makes it of words, so that it can be said again in the other language. */
export function say(text, wrong = false) {
  page.status = { text, wrong };
  byId("status").textContent = text(page.words);
  byId("status").classList.toggle("error", wrong);
}
