// What went wrong, for people: said in the status line, and shown at the field that it is about.

import { byId } from "./dom.js";
import { form, say } from "./page.js";

/** Say what a `ServerError` means. */
export function explain({ status, retryAfter, message, param }) {
  if (status === 0) say((words) => words.gone, true);
  else if (status === 401) say((words) => words.key, true);
  else if (status === 429) say((words) => (retryAfter ? words.busy(retryAfter) : words.busySoon), true);
  else if (status === 503) say((words) => words.unavailable, true);
  else {
    const field = param?.split(".")[0]; // a list's item is named as `seeds.0`
    if (field && byId(field)?.form === form) blame(field);
    say(() => message, true);
  }
}

/** Lead to the field that is wrong. */
export function blame(field) {
  const input = byId(field);
  input.closest("details")?.setAttribute("open", "");
  input.ariaInvalid = "true";
  input.focus();
}

export function forgive() {
  for (const input of form.querySelectorAll("[aria-invalid]")) input.ariaInvalid = null;
}
