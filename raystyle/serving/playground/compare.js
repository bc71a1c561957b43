// A comparison from the button to the last word: ask, take in what comes, and end as it ends.

import { byId } from "./dom.js";
import { blame, explain, forgive } from "./explain.js";
import { firstListing, loadListing } from "./models.js";
import { form, page, say } from "./page.js";
import * as picker from "./picker.js";
import { begin, end, isDiscarded, isHidden, take } from "./run.js";
import { ServerError, compare } from "./server.js";
import { FieldError, drawSeeds, request } from "./settings.js";
import { showRun, updateControls } from "./show.js";

export async function start() {
  forgive();
  await firstListing();
  if (page.listing === null || page.stopper !== null) return;
  const asked = question();
  if (asked === null) return;
  page.stopper = new AbortController();
  updateControls();
  say((words) => words.waiting);
  const began = performance.now();
  let started = false;
  let tokens = 0;
  try {
    for await (const event of compare(asked.body, page.stopper.signal)) {
      if (event.object === "compare.start") {
        started = true;
        page.run = begin(event, asked);
        page.cards = new Map(asked.chosen.map((card) => [card.id, card]));
        showRun();
        byId("columns").scrollIntoView({ block: "nearest" });
      } else if (event.object === "compare.end") tokens = event.usage.completion_tokens;
      else takeIn(event);
    }
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    finish("broken", (words) => words.done(page.run.cells.length, tokens, seconds));
  } catch (error) {
    if (error.name === "AbortError") finish(started ? "stopped" : null, (words) => words.stopped);
    else if (!(error instanceof ServerError)) {
      finish(started ? "broken" : null, () => String(error), true);
      throw error;
    } else if (started) finish("broken", (words) => (error.status ? error.message : words.broken), true);
    else {
      finish(null, () => "");
      explain(error);
      if (error.code === "model_not_found" && (await loadListing())) say((words) => words.vanished(error.message), true);
    }
  }
}

export function stop() {
  page.stopper?.abort();
}

/** What is to be asked; null where the form does not hold it, which is then said. */
function question() {
  const chosen = picker.chosenCards();
  const blind = form.elements.blind.checked;
  const wrong = whyNot(chosen, blind);
  if (wrong) {
    say((words) => words[wrong], true);
    return null;
  }
  // What was read with names on it would be known again.
  if (blind && !form.elements.lock.checked) drawSeeds(form);
  try {
    const body = { ...request(form), models: chosen.map(({ id }) => id), stream: true };
    if (!page.listing.can_scale) body.lora_scales = [1];
    return { body, blind, chosen };
  } catch (error) {
    if (!(error instanceof FieldError)) throw error;
    blame(error.field);
    say((words) => words[error.word](byId(error.field).labels[0].textContent), true);
    return null;
  }
}

function whyNot(chosen, blind) {
  const isBase = ({ kind }) => kind === "base";
  if (!chosen.length) return "needsModel";
  if (blind && (chosen.every(isBase) || !chosen.some(isBase))) return "needsBoth";
  return null;
}

/** The run is over: cells that did not finish end in `state`; null where there was no run. */
function finish(state, text, wrong = false) {
  page.stopper = null;
  if (state === null) {
    say(text, wrong);
    updateControls();
    return;
  }
  const { run } = page;
  end(run, state);
  showRun();
  if (isDiscarded(run)) say((words) => `${text(words)} ${words.discarded}`, true);
  else if (isHidden(run)) say((words) => `${words.question} ${words.guess}`);
  else if (run.cells.some(({ state }) => state === "failed")) say((words) => words.someFailed, true);
  else say(text, wrong);
}

const changed = new Set();

function takeIn(event) {
  const { run } = page;
  const wasHidden = isHidden(run);
  for (const cell of take(run, event, performance.now())) changed.add(cell);
  if (wasHidden !== isHidden(run)) showRun();
  else if (wasHidden) for (const cell of run.cells) changed.add(cell); // all may show as much as the slowest has
  requestAnimationFrame(showChanges);
}

/** Draw what came since the last frame, once: further calls for the same frame find nothing left. */
function showChanges() {
  const cells = page.run.cells.filter((cell) => changed.has(cell)); // an earlier run's may be left
  changed.clear();
  if (!cells.length) return;
  for (const cell of cells) page.drawn.refresh(cell);
  page.drawn.refreshHeads();
  if (page.stopper === null) return;
  const all = page.run.cells.length;
  const done = page.run.cells.filter(({ state }) => state !== "running").length;
  if (byId("status").textContent !== page.words.writing(done, all)) say((words) => words.writing(done, all));
}
