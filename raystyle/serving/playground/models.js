// The list of models: fetched, kept fresh, and chosen from by a link or by default.

import { byId } from "./dom.js";
import { explain } from "./explain.js";
import { form, page, say } from "./page.js";
import * as picker from "./picker.js";
import { ServerError, listing } from "./server.js";
import { fromFragment, short } from "./settings.js";
import { showListing, updateControls } from "./show.js";

const RETRY_S = 5; // where a server that is not ready does not say when to come back
let timer; // one, however often somebody asks meanwhile

/** Fetch the list and show it. Where it cannot be had, says why and returns false. */
export async function loadListing() {
  try {
    page.listing = await listing();
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    if (error.status === 503) {
      say((words) => words.starting, true);
      clearTimeout(timer);
      timer = setTimeout(lookAgain, 1000 * (Number(error.retryAfter) || RETRY_S));
    } else explain(error);
    return false;
  }
  showListing();
  return true;
}

async function lookAgain() {
  if (page.listing === null) await firstListing();
  else if (page.stopper === null && (await loadListing()) && byId("status").textContent === page.words.starting) {
    say(() => "");
  }
}

/** The first time also choose: what the address names, or the base and the newest adapter. */
export async function firstListing() {
  if (page.listing !== null) return;
  say((words) => words.loading);
  if (!(await loadListing())) return;
  say(() => "");
  if (!restore()) picker.choose(defaultModels());
}

function defaultModels() {
  const base = page.listing.data.find(({ kind }) => kind === "base");
  const newest = byId("picker").querySelector(".run input"); // the picker shows the newest first
  return [base?.id, newest?.value].filter(Boolean);
}

/** Fill the form from the address, and say which of its models are missing or have changed. False where it names none. */
export function restore() {
  const asked = fromFragment(form, location.hash);
  updateControls();
  if (asked === null) return false;
  picker.choose(asked.map(({ id }) => id));
  const served = new Map(page.listing.data.map((card) => [card.id, card]));
  const missing = asked.filter(({ id }) => !served.has(id)).map(({ id }) => id);
  const isOther = ({ id, digest }) => digest && served.has(id) && short(served.get(id).digest) !== digest;
  const changed = asked.filter(isOther).map(({ id }) => id);
  const notes = (words) => [
    words.restored,
    ...(missing.length ? [words.missing(missing.join(", "))] : []),
    ...(changed.length ? [words.changed(changed.join(", "))] : []),
  ];
  say((words) => notes(words).join(" "), missing.length + changed.length > 0);
  return true;
}
