// The page: what hands do on it. Nothing is sent for a run before somebody asks for it.

import { start, stop } from "./compare.js";
import { byId, el } from "./dom.js";
import { firstListing, loadListing, restore } from "./models.js";
import { form, page, say } from "./page.js";
import * as picker from "./picker.js";
import { isHidden, toJsonLines } from "./run.js";
import { drawSeeds, short, toFragment } from "./settings.js";
import { changeLanguage, showRun, updateControls } from "./show.js";
import * as tallies from "./tally.js";

/** The answer to a blind round. */
function pick(index) {
  const { run, cards, words } = page;
  const isAuthor = ({ model, scale }) => cards.get(model).kind !== "base" && scale !== 0; // at scale 0 it is the base
  const name = ({ model, digest, scale }) =>
    [model, short(digest), scale === 1 ? "" : `× ${scale}`].filter(Boolean).join(" ");
  const authors = run.columns.filter(isAuthor);
  run.picked = run.columns[index];
  page.tally = tallies.count(page.tally, run.columns.map(name), authors.map(name), name(run.picked));
  tallies.save(page.tally);
  tallies.show(page.tally, words);
  showRun();
  const names = [...new Set(authors.map(({ model }) => model))].join(", ");
  say((words) => (isAuthor(run.picked) ? words.right(run.picked.model) : words.wrong(names)));
  byId("run").focus(); // the button that was pressed is gone
}

async function copyLink() {
  history.replaceState(null, "", toFragment(form, picker.chosenCards()));
  let copied = false;
  try {
    await navigator.clipboard.writeText(location.href);
    copied = true;
  } catch {
    // No clipboard without https, and a browser may refuse: the address bar has it all the same, and that is said.
  }
  say((words) => (copied ? words.copied : words.inAddressBar));
}

function saveJsonLines() {
  if (page.run === null || isHidden(page.run)) return;
  const href = URL.createObjectURL(new Blob([toJsonLines(page.run)], { type: "application/x-ndjson" }));
  el("a", { href, download: `raystyle-${page.run.created}.jsonl` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000); // the download may not have begun yet
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
byId("stop").addEventListener("click", stop);
byId("again").addEventListener("click", () => {
  if (form.elements.lock.checked || page.stopper !== null) return;
  drawSeeds(form);
  start();
});
byId("picks").addEventListener("click", ({ target }) => {
  const buttons = [...byId("picks").querySelectorAll("button")];
  const index = buttons.indexOf(target.closest("button"));
  if (index >= 0) pick(index);
});
byId("refresh").addEventListener("click", async () => {
  if (page.listing === null) await firstListing();
  else await loadListing();
});
byId("link").addEventListener("click", copyLink);
byId("export").addEventListener("click", saveJsonLines);
byId("reset").addEventListener("click", () => {
  page.tally = tallies.EMPTY;
  tallies.save(page.tally);
  tallies.show(page.tally, page.words);
  byId("run").focus();
});
form.elements.lock.addEventListener("change", updateControls);
form.elements.markers.addEventListener("change", showRun);
for (const button of document.querySelectorAll("[data-language]")) {
  button.addEventListener("click", () => changeLanguage(button.dataset.language));
}

document.addEventListener("keydown", (event) => {
  if (event.isComposing) return; // Enter and Esc then belong to the input method
  const inField = event.target.matches("textarea, input:not([type=checkbox])");
  const modified = event.ctrlKey || event.metaKey || event.altKey;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    start();
  } else if (event.key === "Escape") stop();
  else if (/^[1-9]$/.test(event.key) && !inField && !modified) {
    byId("picks").querySelectorAll("button")[Number(event.key) - 1]?.click();
  }
});

document.addEventListener("visibilitychange", () => {
  // A training that runs meanwhile leaves new checkpoints.
  if (!document.hidden && page.stopper === null && page.listing !== null) loadListing();
});
window.addEventListener("hashchange", () => {
  if (page.listing !== null) restore();
});
new ResizeObserver(([{ target }]) => {
  document.documentElement.style.setProperty("--bar", `${target.offsetHeight}px`);
}).observe(byId("bar"));

byId("run").querySelector("kbd").textContent = /Mac|iPhone|iPad/.test(navigator.platform) ? "⌘ ↵" : "Ctrl ↵";
tallies.show(page.tally, page.words);
updateControls();
firstListing();
