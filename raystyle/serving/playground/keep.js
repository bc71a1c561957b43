// What the browser keeps between visits. Where it may keep nothing (private windows, blocked storage), memory stands in.

const memory = new Map();

/** Whether what is set here outlives the page. */
export const lasting = (() => {
  try {
    return Boolean(window.localStorage);
  } catch {
    return false; // blocked: even looking at it throws
  }
})();

export function get(key) {
  return lasting ? localStorage.getItem(key) : (memory.get(key) ?? null);
}

export function set(key, value) {
  if (lasting) localStorage.setItem(key, value);
  else memory.set(key, value);
}
