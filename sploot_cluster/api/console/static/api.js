// A client of the HTTP API. The console uses the same API as every other caller.

import { read, write } from "./exact.js";

const ROOT = document.documentElement.dataset.root;
const API = `${ROOT}/api/v1/internal`;
const TOKEN = "sploot-token";

/** An error response from the API (problem+json). Each of its `errors` names a field and how to fix it. */
export class Refused extends Error {
  constructor(status, problem) {
    const texts = (problem.errors ?? []).map((error) => `${error.field} ${error.problem}; ${error.hint}`);
    super(texts.length ? texts.join(". ") : problem.detail ?? problem.title ?? `HTTP ${status}`);
    this.status = status;
    this.problem = problem;
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (secret) => (secret ? sessionStorage.setItem(TOKEN, secret) : sessionStorage.removeItem(TOKEN)),
};

async function call(method, path, body, headers = {}) {
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  // by the key, the server recognises this request if it is sent again, e.g. after a lost response
  if (method === "POST") headers["Idempotency-Key"] = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
  const response = await fetch(path.startsWith("/") ? `${ROOT}${path}` : `${API}/${path}`, {
    method,
    headers,
    body: body === undefined ? undefined : write(body),
    cache: "no-store",
    signal: AbortSignal.timeout(15_000),
  });
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

/** Load a static file of the console. */
export async function asset(name) {
  const response = await fetch(`${ROOT}/console/${name}`);
  if (!response.ok) throw new Refused(response.status, { detail: `the server has no console file ${name}; reload the page` });
  return response.json();
}

export const get = (path) => call("GET", path);
export const post = (path, body, headers) => call("POST", path, body, headers);
export const remove = (path) => call("DELETE", path);

export const ENDED = new Set(["succeeded", "dead", "cancelled"]);

/** Poll a job until it ends. `onStatus` is called with each status on the way. */
export async function follow(job, onStatus) {
  for (let pause = 150; ; pause = Math.min(pause * 1.5, 2000)) {
    const status = await get(`jobs/${encodeURIComponent(job.job_id)}`);
    onStatus(status);
    if (ENDED.has(status.state)) return status;
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}
