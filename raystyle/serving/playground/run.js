// One comparison: what was asked and what came, without the page. Cells are the texts; a column
// has those of a model at a scale.

const FINISHED = ["stop", "length"];

/** A run of what was asked, from the server's first event. A blind one stands in random order. */
export function begin(event, { body, blind }) {
  const cells = event.cells.map((cell) => ({
    ...cell,
    text: "",
    state: "running", // then "stop" or "length" as the server says, "stopped", "broken", or "failed" with a message
    message: null,
    tokens: 0,
    firstTokens: 0,
    began: null,
    ended: null,
  }));
  const columns = [];
  for (const cell of cells) {
    const column = columns.find(({ model, scale }) => model === cell.model && scale === cell.lora_scale);
    if (column) column.cells.push(cell);
    else columns.push({ model: cell.model, digest: cell.adapter_digest, scale: cell.lora_scale, cells: [cell] });
  }
  if (blind) shuffle(columns);
  const picked = null; // a column, later
  return { prompt: event.prompt, created: event.created, body, cells, columns, blind, picked, level: 0 };
}

function shuffle(items) {
  for (let last = items.length - 1; last > 0; last--) {
    const other = Math.floor(Math.random() * (last + 1));
    [items[last], items[other]] = [items[other], items[last]];
  }
}

/** Take in a delta or an error; `now` in milliseconds. Returns the cells it changed. */
export function take(run, event, now) {
  const numbers = event.object === "compare.error" ? event.cells : [event.cell];
  const changed = run.cells.filter(({ cell }) => numbers.includes(cell));
  for (const cell of changed) {
    if (event.object === "compare.error") {
      Object.assign(cell, { state: "failed", message: event.error.message });
      continue;
    }
    cell.text += event.text;
    cell.tokens += event.tokens ?? 0;
    if (cell.began === null) Object.assign(cell, { began: now, firstTokens: cell.tokens });
    cell.ended = now;
    if (event.finish_reason) cell.state = event.finish_reason;
  }
  if (isHidden(run)) run.level = levelOf(run);
  return changed;
}

/** Give the cells that are still running their end: "stopped" or "broken". */
export function end(run, state) {
  for (const cell of run.cells) if (cell.state === "running") cell.state = state;
}

/** Whether a column's model may not be told yet. A round in which something failed is not one, and hides nothing. */
export function isHidden(run) {
  return run.blind && run.picked === null && !isDiscarded(run);
}

export function isOver(run) {
  return run.cells.every(({ state }) => state !== "running");
}

export function isDiscarded(run) {
  return run.blind && run.picked === null && run.cells.some(({ state }) => state === "broken" || state === "failed");
}

/** How much of every text may be shown in a hidden run: as much as the slowest has. A model that writes faster than the
 * others would be told by that alone. */
function levelOf(run) {
  const unfinished = run.cells.filter(({ state }) => !FINISHED.includes(state));
  return Math.min(...unfinished.map(({ text }) => text.length));
}

/** A cell's text as far as it may be shown. */
export function shownText(run, cell) {
  if (!isHidden(run)) return cell.text;
  const text = cell.text.slice(0, run.level);
  return /[\ud800-\udbff]$/.test(text) ? text.slice(0, -1) : text; // half of a rare character
}

/** Tokens a second from the first to the last piece; null where there was only one. */
export function speed({ tokens, firstTokens, began, ended }) {
  return ended > began && tokens > firstTokens ? (1000 * (tokens - firstTokens)) / (ended - began) : null;
}

/** A run as lines of JSON, a text each, in the order shown. */
export function toJsonLines(run) {
  const { top_p, top_k, repetition_penalty, max_tokens } = run.body;
  const line = (column, cell) => ({
    prompt: run.prompt,
    model: cell.model,
    digest: cell.adapter_digest,
    seed: cell.seed,
    temperature: cell.temperature,
    scale: cell.lora_scale,
    top_p,
    top_k,
    repetition_penalty,
    max_tokens,
    text: cell.text,
    finish_reason: FINISHED.includes(cell.state) ? cell.state : null,
    error: cell.message,
    blind: run.blind,
    picked: run.picked && run.picked === column, // null where nobody chose
    time: new Date(1000 * run.created).toISOString(),
  });
  const lines = run.columns.flatMap((column) => column.cells.map((cell) => line(column, cell)));
  return lines.map((line) => `${JSON.stringify(line)}\n`).join("");
}
