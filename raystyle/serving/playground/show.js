// The page as it is to look for what is known.

import { draw, letter } from "./columns.js";
import { byId, el } from "./dom.js";
import * as keep from "./keep.js";
import { patternOf } from "./markers.js";
import { form, page, say } from "./page.js";
import * as picker from "./picker.js";
import { isHidden } from "./run.js";
import * as tallies from "./tally.js";
import { speak } from "./words.js";

export function updateControls() {
  const { run, stopper } = page;
  const busy = stopper !== null;
  const locked = form.elements.lock.checked;
  // Not `disabled`: a button that has the focus would lose it.
  byId("run").ariaDisabled = String(busy);
  byId("stop").ariaDisabled = String(!busy);
  byId("again").ariaDisabled = String(busy || locked);
  byId("export").ariaDisabled = String(run === null || isHidden(run));
  form.elements.seeds.readOnly = locked;
  byId("empty").hidden = run !== null;
  byId("columns").hidden = run === null;
  const choosing = run !== null && !busy && isHidden(run);
  byId("picks").hidden = !choosing;
  byId("picks").replaceChildren(...(choosing ? run.columns.map((_, index) => pickButton(index)) : []));
}

function pickButton(index) {
  const button = el("button", { type: "button", ariaLabel: page.words.column(letter(index)) }, letter(index));
  if (index < 9) button.append(" ", el("kbd", {}, String(index + 1)));
  return button;
}

export function showRun() {
  const { run, cards, words } = page;
  if (run === null) return;
  const markers = run.columns.flatMap(({ model }) => cards.get(model).markers);
  const pattern = form.elements.markers.checked ? patternOf(markers) : null;
  page.drawn = draw(run, { cards, pattern, words });
  updateControls();
}

export function showListing() {
  const { listing, words } = page;
  if (listing === null) return;
  picker.show(listing, words);
  byId("scales").hidden = !listing.can_scale;
  byId("limit").textContent = words.limit(listing.max_length, listing.engine);
}

export function changeLanguage(language) {
  page.words = speak(language, keep);
  showListing();
  showRun();
  updateControls();
  tallies.show(page.tally, page.words);
  say(page.status.text, page.status.wrong);
}
