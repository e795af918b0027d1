// The HTTP API, as every other caller uses it.

import { read, write } from "./exact.js";

const ROOT = document.documentElement.dataset.root;
const API = `${ROOT}/api/v1/internal`;
const TOKEN = "sploot-token";

/** What the API said, as problem+json; `errors` name field and hint. */
export class Refused extends Error {
  constructor(status, problem) {
    const told = (problem.errors ?? []).map((error) => `${error.field} ${error.problem}; ${error.hint}`);
    super(told.length ? told.join(". ") : problem.detail ?? problem.title ?? `HTTP ${status}`);
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
  // a repeated click, or a repeated try after a lost answer, is the same request
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
  // of a correction: what the page does not show yet
  const arrivals = response.headers.get("Arrivals-Since");
  return arrivals === null ? answer : { ...answer, n_arrivals: Number(arrivals) };
}

/** A file of the console itself. */
export async function asset(name) {
  const response = await fetch(`${ROOT}/console/${name}`);
  if (!response.ok) throw new Refused(response.status, { detail: `the console lacks its file ${name}` });
  return response.json();
}

export const get = (path) => call("GET", path);
export const post = (path, body, headers) => call("POST", path, body, headers);
export const remove = (path) => call("DELETE", path);

const ENDED = new Set(["succeeded", "dead"]);

/** Follow a job to its end; `told` hears every state on the way. */
export async function follow(job, told) {
  for (let pause = 150; ; pause = Math.min(pause * 1.5, 2000)) {
    const status = await get(`jobs/${encodeURIComponent(job.job_id)}`);
    told(status);
    if (ENDED.has(status.state)) return status;
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}
