// The author's words in a text.

/** A pattern that finds markers, the longest first; null for none. */
export function patternOf(markers) {
  const longestFirst = [...new Set(markers)].filter(Boolean).sort((a, b) => b.length - a.length);
  return longestFirst.length ? new RegExp(longestFirst.map(source).join("|"), "giu") : null;
}

const WITHIN_WORDS = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}]/u;

function source(marker) {
  const characters = [...marker];
  const body = marker.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&").replace(/\s+/gu, "\\s+");
  // Scripts with spaces have whole words, or “he” would be found in “the”.
  const isWord = (character) => /[\p{L}\p{N}]/u.test(character) && !WITHIN_WORDS.test(character);
  const before = isWord(characters[0]) ? "(?<![\\p{L}\\p{N}])" : "";
  const after = isWord(characters.at(-1)) ? "(?![\\p{L}\\p{N}])" : "";
  return before + body + after;
}

/** A text as nodes, its markers in <mark>. Nothing in it is read as HTML. */
export function marked(text, pattern) {
  const nodes = [];
  let end = 0;
  for (const { 0: found, index } of pattern ? text.matchAll(pattern) : []) {
    const mark = document.createElement("mark");
    mark.textContent = found;
    nodes.push(text.slice(end, index), mark);
    end = index + found.length;
  }
  return [...nodes, text.slice(end)];
}

/** Markers in every 1,000 characters of some texts; null where there is no text or no marker to look for. */
export function density(texts, pattern) {
  const characters = texts.reduce((sum, text) => sum + [...text].length, 0);
  if (!pattern || !characters) return null;
  const found = texts.reduce((sum, text) => sum + [...text.matchAll(pattern)].length, 0);
  return (1000 * found) / characters;
}
