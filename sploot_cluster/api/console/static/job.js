// The page of one job, and the notice that shows the state of a job until it ends.

import { act } from "./actions.js";
import { ENDED, follow, get, may } from "./api.js";
import { write } from "./exact.js";
import { advice, count, go, h, notice, number, table, when } from "./dom.js";
import { labelOf, petLink } from "./names.js";
import { changes, figuresOfJobs } from "./pushed.js";
import { stageBar } from "./stage.js";

const hasChanged = changes();

export const job = {
  title: ({ rest }, status) => (status?.job_id ? `${status.actor}${status.pet_id ? ` of ${labelOf(status.pet_id)}` : ""}: ${status.state}` : rest[0] ? `Job ${rest[0]}` : "Jobs"),
  every: 3000,
  news({ queues: { queues } }, status) {
    if (!status.job_id) return { queues };
    // a dead job may be requeued; other jobs that have ended stay as they are
    if (ENDED.has(status.state) && status.state !== "dead") return status;
    const queue = figuresOfJobs(queues.find((one) => one.queue === status.queue));
    return status.stage || hasChanged([status.job_id, queue]) ? null : status;
  },
  load: async ({ rest }) => (rest[0] ? get(`jobs/${encodeURIComponent(rest[0])}`) : may("get_queues") ? get("queues") : { queues: [] }),
  // shown even above an error: a job that no worker has started may have no record, but can be found in its queue
  form: (visit) => [idForm(visit), visit.rest[0] && h("p", {}, h("a", { href: `#/find?text=${encodeURIComponent(visit.rest[0])}` }, "Search the queues for it"))],
  draw(status, visit, again) {
    const form = idForm(visit);
    if (!status.job_id) return [h("h1", {}, "Jobs"), h("p", { class: "quiet" }, "Corrections, reclusters and uploads run as jobs. Enter the id of a job to see its state."), form, unfinished(status.queues)];
    return [
      h("h1", {}, status.actor, status.pet_id && [" of ", petLink(status.pet_id)]),
      form,
      h(
        "dl",
        {},
        fact("state", h("span", { class: `state is-${status.state}` }, status.state)),
        fact("reason", advice(status.reason)),
        status.stage && fact("progress", stageBar(status.stage)),
        fact("job", h("span", { class: "id" }, status.job_id)),
        fact("queue", h("a", { href: `#/jobs/${status.queue}/waiting` }, status.queue)),
        fact("attempts", status.attempts),
        fact("enqueued", when(status.enqueued_at)),
        fact("started", when(status.started_at)),
        fact("ended", when(status.finished_at)),
        status.due_at && fact("due", when(status.due_at)),
        ...Object.entries(status.result ?? {}).map(([name, value]) => fact(name.replaceAll("_", " "), typeof value === "object" ? write(value) : String(value))),
      ),
      timeline(status),
      ENDED.has(status.state) || !may("plan_cancel") ? null : h("p", {}, cancelButton(status, again)),
    ];
  },
};

function idForm({ rest }) {
  const id = h("input", { name: "id", value: rest[0] ?? "", required: true, size: 40, placeholder: "job id", "aria-label": "Job id" });
  return h("form", { class: "row", onsubmit: (event) => (event.preventDefault(), go(`#/job/${encodeURIComponent(id.value.trim())}`)) }, id, h("button", { class: "main" }, "Show"));
}

/** Draw how many jobs each queue has, with links to them. */
function unfinished(queues) {
  const cell = (n, address) => number(n ? h("a", { href: `#/${address}` }, count(n)) : "0");
  const rows = queues.map((queue) => [
    h("strong", {}, queue.queue),
    cell(queue.undelivered, `jobs/${queue.queue}/waiting`),
    cell(queue.in_flight, `jobs/${queue.queue}/running`),
    cell(queue.delayed, `jobs/${queue.queue}/delayed`),
    cell(queue.dead, `dead/${queue.queue}`),
  ]);
  return rows.length > 0 && table(["queue", ...["waiting", "running", "delayed", "dead"].map((text) => ({ text, class: "number" }))], rows);
}

/** Draw what happened to the job, in chronological order. */
function timeline({ enqueued_at: enqueued, started_at: started, finished_at: ended, due_at: due, failures, attempts, state, reason }) {
  const events = [
    [enqueued, "enqueued", ""],
    ...failures.map((one) => [one.failed_at, `attempt ${one.attempt} failed`, one.error]),
    started && failures.length < attempts && [started, `attempt ${attempts} started`, ""],
    due && [due, "due", ""],
    ended && [ended, state, reason],
  ].filter((event) => event && event[0]);
  events.sort(([one], [other]) => new Date(one) - new Date(other));
  return events.length > 1 && [h("h2", {}, "Timeline"), table(["when", "what", "error or result"], events.map(([at, what, text]) => [when(at), h("td", { class: "whole" }, what), advice(text)]))];
}

function cancelButton({ job_id: id, queue }, again) {
  const options = { title: `Cancel ${id}`, cli: ["queue", "cancel", queue, id], danger: true, again };
  return h("button", { type: "button", onclick: () => act(queue, "cancel", { job_ids: [id] }, options) }, "Cancel…");
}

const fact = (name, value) => [h("dt", {}, name), h("dd", {}, value)];

/** Show the state of an enqueued job in a notice until it ends. Resolves to its status, or to null if that is unknown. */
export async function watch(accepted, what) {
  const element = notice(`${what}: ${accepted.coalesced ? "already waiting" : "enqueued"}`, { stay: true });
  const text = element.querySelector("span");
  try {
    const status = await follow(accepted, ({ state, reason }) => (text.textContent = `${what}: ${state}, ${reason}`));
    element.classList.add(status.state === "succeeded" ? "is-good" : "is-bad");
    text.append(" ", h("a", { href: `#/job/${encodeURIComponent(status.job_id)}` }, "job"));
    setTimeout(() => element.remove(), status.state === "succeeded" ? 8000 : 60_000);
    return status;
  } catch (error) {
    text.textContent = `${what}: ${error.message}`;
    element.classList.add("is-bad");
    return null;
  }
}
