// What became of a job.

import { follow, get } from "./api.js";
import { write } from "./exact.js";
import { h, notice, when } from "./dom.js";

export const job = {
  title: ({ rest }) => (rest[0] ? `Job ${rest[0]}` : "Jobs"),
  every: 3000,
  load: async ({ rest }) => (rest[0] ? get(`jobs/${encodeURIComponent(rest[0])}`) : null),
  draw(status, { rest }) {
    const id = h("input", { name: "id", value: rest[0] ?? "", required: true, size: 40, placeholder: "job id", "aria-label": "Job id" });
    const form = h("form", { class: "row", onsubmit: (event) => (event.preventDefault(), (location.hash = `#/job/${encodeURIComponent(id.value.trim())}`)) }, id, h("button", { class: "main" }, "Look"));
    if (!status) return [h("h1", {}, "Jobs"), h("p", { class: "quiet" }, "Merge, split, undo, recluster and ingest answer with the id of a job."), form];
    if (document.activeElement?.name === "id") return null;
    return [
      h("h1", {}, "Job ", h("span", { class: "id" }, status.job_id)),
      form,
      h(
        "dl",
        {},
        fact("state", h("span", { class: `state is-${status.state}` }, status.state)),
        fact("reason", status.reason),
        fact("does", `${status.actor} of queue ${status.queue}`),
        status.pet_id && fact("pet", h("a", { href: `#/pet/${status.pet_id}` }, status.pet_id)),
        fact("attempts", status.attempts),
        fact("enqueued", when(status.enqueued_at)),
        fact("started", when(status.started_at)),
        fact("ended", when(status.finished_at)),
        status.due_at && fact("due", when(status.due_at)),
        ...Object.entries(status.result ?? {}).map(([name, value]) => fact(name.replaceAll("_", " "), typeof value === "object" ? write(value) : String(value))),
      ),
    ];
  },
};

const fact = (name, value) => [h("dt", {}, name), h("dd", {}, value)];

/** Tell of a job that was just enqueued until it ends; resolves to its status. */
export async function watch(accepted, what) {
  const told = notice(`${what}: ${accepted.coalesced ? "waits already" : "enqueued"}`, { stay: true });
  const text = told.querySelector("span");
  try {
    const status = await follow(accepted, ({ state, reason }) => (text.textContent = `${what}: ${state}, ${reason}`));
    told.classList.add(status.state === "succeeded" ? "is-good" : "is-bad");
    text.append(" ", h("a", { href: `#/job/${encodeURIComponent(status.job_id)}` }, "job"));
    setTimeout(() => told.remove(), status.state === "succeeded" ? 8000 : 60_000);
    return status;
  } catch (error) {
    text.textContent = `${what}: ${error.message}`;
    told.classList.add("is-bad");
    return null;
  }
}
