// A client of the HTTP API. The console uses the same API as every other caller.

import { read, write } from "./exact.js";

const ROOT = document.documentElement.dataset.root;
const API = `${ROOT}/api/v1/internal`;
const TOKEN = "sploot-token";

/** An error response from the API (problem+json). Each of its `errors` names a field and how to fix it. */
export class Refused extends Error {
  constructor(status, problem) {
    const texts = (problem.errors ?? []).map((error) => `${error.field} ${error.problem}; ${error.hint}`);
    super(texts.length && status < 500 ? texts.join(". ") : problem.detail ?? problem.title ?? `HTTP ${status}`);
    this.status = status;
    this.problem = problem;
  }
}

/** No response arrived, because the server or the network is down. */
export class Unanswered extends Error {}

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (secret) => (secret ? sessionStorage.setItem(TOKEN, secret) : sessionStorage.removeItem(TOKEN)),
};

// A slow response is better than none; the server itself gives up on Redis after 10 s.
const TIMEOUT_MS = 30_000;

async function call(method, path, body, headers = {}) {
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  // the key lets the server recognise this request if it is sent again, e.g. after a lost response
  if (method === "POST") headers["Idempotency-Key"] = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
  const response = await fetch(path.startsWith("/") ? `${ROOT}${path}` : `${API}/${path}`, {
    method,
    headers,
    body: body === undefined ? undefined : write(body),
    cache: "no-store",
    signal: AbortSignal.timeout(TIMEOUT_MS),
  }).catch(unanswered);
  const text = await response.text();
  let answer = {};
  try {
    answer = text ? read(text) : {};
  } catch {
    answer = { detail: text.slice(0, 200) };
  }
  if (!response.ok) throw new Refused(response.status, answer);
  // corrections only: how many items arrived that the page does not show yet
  const arrivals = response.headers.get("Arrivals-Since");
  return arrivals === null ? answer : { ...answer, n_arrivals: Number(arrivals) };
}

/** Open a stream of server-sent events; resolves to its bytes. */
export async function watch(path, signal) {
  const headers = { Accept: "text/event-stream", ...(token.get() && { Authorization: `Bearer ${token.get()}` }) };
  const response = await fetch(`${API}/${path}`, { headers, cache: "no-store", signal }).catch(unanswered);
  if (!response.ok) throw new Refused(response.status, {});
  return response.body;
}

/** Turn the error that a browser throws when no response arrives into a sentence. */
function unanswered(error) {
  throw new Unanswered(error.name === "TimeoutError" ? `The server did not answer within ${TIMEOUT_MS / 1000} s.` : "The server cannot be reached.", { cause: error });
}

let who = null;

/** The caller: its name, role and permitted operations; null until the server has recognised it. */
export const me = () => who;

/** Whether the caller may call an operation, by its id in /openapi.json. */
export const may = (operation) => operation === undefined || (who?.may_call.includes(operation) ?? false);

/** Ask the server who the caller is. */
export const recognise = async () => (who = await get("whoami"));

export const forget = () => (who = null);

/** Load a static file of the console. */
export async function asset(name) {
  const response = await fetch(`${ROOT}/console/${name}`).catch(unanswered);
  if (!response.ok) throw new Refused(response.status, { detail: `the server has no console file ${name}; reload the page` });
  return response.json();
}

export const get = (path) => call("GET", path);
export const post = (path, body, headers) => call("POST", path, body, headers);
export const remove = (path) => call("DELETE", path);

export const ENDED = new Set(["succeeded", "dead", "cancelled", "refused"]);

/** Poll a job until it ends. `onStatus` is called with each status. */
export async function follow(job, onStatus, { isWanted = () => true } = {}) {
  for (let pause = 150; ; pause = Math.min(pause * 1.5, 2000)) {
    const status = await get(`jobs/${encodeURIComponent(job.job_id)}`);
    if (!isWanted()) return status;
    onStatus(status);
    if (ENDED.has(status.state)) return status;
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}
