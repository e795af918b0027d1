// The unfinished jobs of a queue: the lists to which the numbers on the queues page link.

import { get, may } from "./api.js";
import { act } from "./actions.js";
import { count, duration, go, h, shortName, table, when } from "./dom.js";
import { petLink } from "./names.js";
import { figuresOfJobs, kept } from "./pushed.js";

const STATES = { waiting: "Waiting", running: "Running", delayed: "Delayed" };
const PAGE = 50;

export const jobs = {
  title: ({ rest: [queue] }) => `Jobs of ${queue ?? "a queue"}`,
  every: 5000,
  isAgeing: true,
  news: ({ queues: { queues } }, data) => kept(data, figuresOfJobs(queues.find((one) => one.queue === data.status?.queue))),
  form: ({ rest: [queue, state] }) => tabs(queue, state),
  async load({ rest: [queue, state = "waiting"], query }) {
    const loadedAt = performance.now();
    const { queues } = await get("queues");
    const status = queues.find((one) => one.queue === queue);
    const wanted = new URLSearchParams({ state, limit: PAGE });
    if (query.get("cursor")) wanted.set("cursor", query.get("cursor"));
    const { jobs, next_cursor: cursor } = await get(`queues/${encodeURIComponent(queue)}/jobs?${wanted}`);
    return { jobs, cursor, status, loadedAt, figures: figuresOfJobs(status) };
  },
  draw({ jobs: found, cursor, status }, { rest: [queue, state = "waiting"], query }, again) {
    const own = may("plan_rescue") && state === "running" && h("button", { type: "button", onclick: () => rescue(queue, again) }, "Rescue orphans…");
    return [
      heading(queue),
      tabs(queue, state, status),
      own && h("div", { class: "row" }, own),
      jobTable(found, { empty: { waiting: "No job waits.", running: "No worker holds a job.", delayed: "No job is delayed or retried." }[state] }),
      pager(`#/jobs/${queue}/${state}`, query, cursor),
    ];
  },
};

const heading = (queue) => h("h1", {}, h("a", { href: "#/queues", class: "quiet" }, "Queues"), ` / ${queue}`);

/** Plan to requeue the jobs that no consumer holds. */
export const rescue = (queue, again) => act(queue, "rescue", { unowned: true }, { title: `Rescue orphans of ${queue}`, cli: ["queue", "rescue", queue, "--unowned"], again });

function tabs(queue, state = "waiting", status = null) {
  const link = (text, address, n, isHere) => h("a", { href: address, "aria-current": isHere ? "page" : null }, text, status && h("span", { class: "count" }, count(n)));
  const figures = status && { waiting: status.undelivered, running: status.in_flight, delayed: status.delayed };
  return h(
    "nav",
    { class: "tabs", "aria-label": "Kinds of jobs" },
    Object.entries(STATES).map(([name, text]) => link(text, `#/jobs/${queue}/${name}`, figures?.[name], name === state)),
    link("Dead", `#/dead/${queue}`, status?.dead),
  );
}

/** Draw a list of unfinished jobs. */
export function jobTable(found, { empty, withQueue = false } = {}) {
  const heads = ["state", ...(withQueue ? ["queue"] : []), "job", "actor", "pet", "item", "since or due", "worker"];
  return table(heads, found.map((one) => row(one, withQueue)), { empty });
}

function row(one, withQueue) {
  const since = one.started_at ?? one.added_at;
  const dueInMs = new Date(one.due_at ?? 0) - Date.now();
  const age = one.due_at ? (dueInMs > 0 ? `due in ${duration(dueInMs)}` : "due now") : since && `for ${duration(Date.now() - new Date(since))}`;
  const worker = one.worker
    ? [h("span", { class: "id", title: one.worker }, shortName(one.worker)), one.is_worker_alive === false && h("strong", { class: "is-critical" }, " dead")]
    : "–";
  return [
    h("td", {}, h("span", { class: `state is-${one.state}` }, one.state), one.attempts > 0 && h("p", { class: "quiet" }, `${one.attempts} failed: ${one.error ?? ""}`)),
    ...(withQueue ? [h("a", { href: `#/jobs/${one.queue}/${one.state === "retrying" ? "delayed" : one.state}` }, one.queue)] : []),
    one.job_id ? h("a", { class: "id", href: `#/job/${encodeURIComponent(one.job_id)}` }, one.job_id) : h("span", { class: "id" }, one.entry_id ?? "–"),
    one.actor ?? "–",
    one.pet_id ? petLink(one.pet_id) : "–",
    one.media_id ?? "–",
    h("td", {}, when(one.due_at ?? since), h("p", { class: "quiet" }, age)),
    h("td", {}, worker),
  ];
}

/** Draw the links to the first and the next page of a list. */
export function pager(address, query, cursor) {
  const to = (value) => {
    const next = new URLSearchParams(query);
    if (value) next.set("cursor", value);
    else next.delete("cursor");
    return `${address}${[...next].length ? `?${next}` : ""}`;
  };
  if (!cursor && !query.get("cursor")) return null;
  return h("div", { class: "row" }, query.get("cursor") && h("a", { href: to(null) }, "First page"), cursor && h("a", { href: to(cursor) }, "Next page"));
}

/** Make the search form in the header open the page of search results. */
export function listenForSearches() {
  const form = document.getElementById("search");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = form.elements.text.value.trim();
    if (text) go(`#/find?text=${encodeURIComponent(text)}`);
  });
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest?.("input, select, textarea, dialog");
    if (event.key !== "/" || isTyping || form.hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    form.elements.text.focus();
  });
}
