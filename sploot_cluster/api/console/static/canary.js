// Canaries: dead letters that are requeued carefully, one first, then the rest at a limited rate.

import { get, post } from "./api.js";
import { count, fill, h, notice, when } from "./dom.js";

const EVERY_MS = 1_000;
// With more dead letters than this, the canary is preselected.
const MANY = 10;

/** Draw the form that asks how to requeue, for the dialog of a plan. */
export function choice(plan) {
  if (plan.action !== "requeue" || plan.entries.length < 2) return null;
  const isMany = plan.entries.length > MANY;
  const radio = (value, checked, ...text) => h("p", {}, h("label", {}, h("input", { type: "radio", name: "how", value, checked }), " ", ...text));
  const field = (name, value, label, step) => h("input", { type: "number", name, value, min: step, step: "any", "aria-label": label, size: 5, class: "short" });
  return h(
    "fieldset",
    {},
    h("legend", {}, "How"),
    radio("canary", isMany, "One first, as a canary. If it succeeds, the rest:"),
    h("p", { class: "indented" }, field("per_s", 10, "Per second", 0.01), " per second, until ", field("stop_after", 3, "Stop after", 1), " fail again"),
    radio("all", !isMany, "All at once"),
  );
}

/** Return the settings of the canary from the form, or null if all are to be requeued at once. */
export const wanted = (values) => (values.get("how") === "canary" ? { per_s: Number(values.get("per_s")), stop_after: Number(values.get("stop_after")) } : null);

/** Return the equivalent command-line options. */
export const options = (values) => {
  const how = wanted(values);
  return how ? ["--canary", "--rate", how.per_s, "--stop-after", how.stop_after] : [];
};

/** Draw the running canaries of a queue and the last one that ended. Each keeps itself up to date while it is shown. */
export function canaries(runs, again) {
  const shown = [...runs.filter((run) => run.state === "running"), ...runs.filter((run) => run.state !== "running").slice(0, 1)];
  return shown.map((run) => panel(run, again));
}

function panel(run, again) {
  const place = h("section", { class: "canary", "aria-label": `Canary ${run.plan_id}`, data: { keep: `${run.plan_id} ${run.state}` } });
  drawRun(place, run);
  if (run.state === "running") setTimeout(() => follow(place, run, again), EVERY_MS);
  return place;
}

async function follow(place, run, again) {
  if (!place.isConnected) return;
  if (!document.hidden) {
    try {
      const { canaries: runs } = await get("queues/canaries");
      const now = runs.find((one) => one.plan_id === run.plan_id);
      if (!now || now.state !== "running") return again();
      drawRun(place, now);
    } catch {
      // ignore the error: the header shows that the server is unavailable
    }
  }
  setTimeout(() => follow(place, run, again), EVERY_MS);
}

function drawRun(place, run) {
  const isRunning = run.state === "running";
  const failed = run.n_died > 0 && h("strong", { class: "is-critical" }, `, ${count(run.n_died)} failed again`);
  place.className = `canary is-${run.state}`;
  fill(
    place,
    h("p", {}, h("strong", {}, isRunning ? "Canary running" : `Canary ${run.state}`), h("span", { class: "quiet" }, " since ", when(run.started_at), ` by ${run.by}, ${run.per_s} per second`)),
    h("progress", { max: run.n_planned, value: run.n_requeued, "aria-label": "Requeued" }),
    h("p", {}, `${count(run.n_requeued)} of ${count(run.n_planned)} requeued`, failed, run.reason && `: ${run.reason}`),
    isRunning && h("button", { type: "button", onclick: (event) => stop(event.currentTarget, run) }, "Stop"),
  );
}

async function stop(button, run) {
  button.disabled = true;
  try {
    await post(`queues/canaries/${encodeURIComponent(run.plan_id)}/stop`, {});
    notice("The canary stops before its next step.");
  } catch (error) {
    notice(error.message, { kind: "bad" });
  }
}
