// The server's answers: the list of models, and a comparison as a stream of events.

/** An answer other than success. `status` 0 means that no answer came. */
export class ServerError extends Error {
  constructor(status, { message = `HTTP ${status}`, code = null, param = null } = {}, retryAfter = null) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

/** What is served. Throws `ServerError`. */
export async function listing() {
  const answer = await ask("v1/models");
  return connected(() => answer.json());
}

/** The events of one comparison as they come. Throws `ServerError`, also where the stream breaks or ends without the
 * server's word for its end; an `AbortError` where `signal` stops it. */
export async function* compare(body, signal) {
  const headers = { "Content-Type": "application/json" };
  const answer = await ask("v1/compare", { method: "POST", headers, body: JSON.stringify(body), signal });
  for await (const line of lines(answer.body)) {
    if (!line.startsWith("data:")) continue; // empty lines between events, and comments that keep the line alive
    const data = line.slice(5).trim();
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error && !event.object) throw new ServerError(200, event.error);
    yield event;
  }
  throw new ServerError(0, { message: "the stream ended before its end" });
}

async function ask(path, options) {
  const answer = await connected(() => fetch(path, { cache: "no-store", ...options }));
  if (answer.ok) return answer;
  const text = await connected(() => answer.text());
  let error;
  try {
    error = JSON.parse(text).error;
  } catch {
    error = {}; // not ours: a proxy's page, of which the status says enough
  }
  throw new ServerError(answer.status, error, answer.headers.get("Retry-After"));
}

/** What `talk` returns; where the connection is lost, `ServerError`. */
async function connected(talk) {
  try {
    return await talk();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, { message: error.message });
  }
}

/** A body's lines. A character may be split between two pieces, and so may a line. */
export async function* lines(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await connected(() => reader.read());
    rest += decoder.decode(value, { stream: !done });
    const complete = rest.split("\n");
    rest = complete.pop();
    for (const line of complete) yield line.replace(/\r$/, "");
    if (done) break;
  }
  if (rest) yield rest;
}
