// The form's settings: as the API's fields, and as the part of a link behind `#`, which no server sees.

const LISTS = ["seeds", "temperatures", "lora_scales"];
const NUMBERS = ["max_tokens", "top_p", "top_k", "repetition_penalty"];
const WHOLE = ["seeds", "max_tokens", "top_k"];
const SWITCHES = ["lock", "blind", "markers"];
const DIGEST_CHARS = 12;

/** A field that does not hold what it must; `word` is the message's name in words.js. */
export class FieldError extends Error {
  constructor(field) {
    super(`${field} does not hold numbers`);
    this.field = field;
    this.word = WHOLE.includes(field) ? "wholeNumbers" : "numbers";
  }
}

/** The body of a comparison, without its models. Throws `FieldError`; ranges are the server's to judge. */
export function request(form) {
  const body = { prompt: form.elements.prompt.value };
  for (const field of LISTS) body[field] = numbers(form, field);
  for (const field of NUMBERS) {
    const [value, ...more] = numbers(form, field);
    if (more.length) throw new FieldError(field);
    body[field] = value;
  }
  return body;
}

function numbers(form, field) {
  // NFKC makes the full-width digits, commas and points of a Chinese keyboard plain ones.
  const parts = form.elements[field].value.normalize("NFKC").split(/[\s,;、]+/).filter(Boolean);
  const values = parts.map(Number);
  // Above 2**53 JavaScript would send another seed than the one typed.
  const valid = WHOLE.includes(field) ? (value) => Number.isSafeInteger(value) && value >= 0 : Number.isFinite;
  if (!values.length || !values.every(valid)) throw new FieldError(field);
  return values;
}

/** As many other seeds as the form has. */
export function drawSeeds(form) {
  const count = form.elements.seeds.value.split(/[\s,;、，；]+/).filter(Boolean).length;
  const draw = () => 1 + Math.floor(Math.random() * 999_999);
  form.elements.seeds.value = Array.from({ length: Math.max(1, count) }, draw).join(", ");
}

/** All settings as a link's fragment. Of each model also the digest, for a name can move on to another version. */
export function toFragment(form, models) {
  const fragment = new URLSearchParams();
  for (const field of ["prompt", ...LISTS, ...NUMBERS]) fragment.set(field, form.elements[field].value);
  for (const field of SWITCHES) fragment.set(field, form.elements[field].checked ? "1" : "0");
  for (const { id, digest } of models) fragment.append("model", digest ? `${id}~${digest.slice(0, DIGEST_CHARS)}` : id);
  return `#${fragment}`;
}

/** Fill the form from a fragment, leaving what it does not name. Returns the models it names as {id, digest}, or null. */
export function fromFragment(form, hash) {
  const fragment = new URLSearchParams(hash.slice(1));
  for (const field of ["prompt", ...LISTS, ...NUMBERS]) {
    if (fragment.has(field)) form.elements[field].value = fragment.get(field);
  }
  for (const field of SWITCHES) {
    if (fragment.has(field)) form.elements[field].checked = fragment.get(field) === "1";
  }
  const models = fragment.getAll("model").map((model) => {
    const [id, digest] = model.split("~");
    return { id, digest: digest ?? null };
  });
  return models.length ? models : null;
}

/** A digest as people compare it. */
export function short(digest) {
  return digest ? digest.slice(0, DIGEST_CHARS) : "";
}
