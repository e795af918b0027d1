// The page of the queues: their figures, their workers, the reasons for waiting work, and the audit log.

import { get, may } from "./api.js";
import { ask, count, duration, h, number, shell, table, when } from "./dom.js";
import { act } from "./actions.js";
import { rescue } from "./jobs.js";
import { levelOf, thresholds } from "./thresholds.js";

const RECLUSTER = "cluster.recluster";

export const queues = {
  title: () => "Queues",
  every: 5000,
  news: ({ queues: { queues }, audit }) => ({ queues, audit: audit ?? null }),
  async load() {
    const [{ queues }] = await Promise.all([get("queues"), thresholds()]);
    // only operators may read the audit log; others see the page without it
    const audit = may("get_audit") ? await get("queues/audit?limit=10") : null;
    return { queues, audit };
  },
  draw({ queues, audit }, _, again) {
    const rows = queues.map((queue) => [
      h("td", {}, h("strong", {}, queue.queue), h("p", { class: "quiet" }, queue.reason)),
      ...figures(queue).map(([text, level]) => number(text, level)),
      h("td", { class: "actions" }, may("apply_plan") && [queue.orphaned > 0 && [rescueButton(queue, again), " "], pauseButton(queue, again), " ", cancelButton(queue, again)]),
    ]);
    return [
      h("h1", {}, "Queues"),
      banner(queues),
      table(["queue", ...HEADS.map((text) => ({ text, class: "number" })), ""], rows),
      h("h2", {}, "Workers"),
      workers(queues, again),
      audit && [h("h2", {}, "Audit log"), auditTable(audit.records)],
    ];
  },
};

const HEADS = ["undelivered", "in flight", "delayed", "orphaned", "dead", "oldest", "held for"];

function figures(queue) {
  const isRecluster = queue.queue === RECLUSTER;
  return [
    [jobsLink(queue, queue.undelivered, "waiting"), levelOf("undelivered", queue.undelivered)],
    [jobsLink(queue, queue.in_flight, "running"), levelOf("pending", queue.in_flight)],
    [jobsLink(queue, queue.delayed, "delayed"), levelOf("delayed", queue.delayed)],
    [count(queue.orphaned), levelOf("orphans", queue.orphaned)],
    [deadLink(queue), levelOf("dead", queue.dead)],
    [duration(queue.oldest_age_s === null ? null : queue.oldest_age_s * 1000), levelOf(isRecluster ? "recluster_age" : "oldest_age", queue.oldest_age_s)],
    [duration(queue.oldest_pending_s === null ? null : queue.oldest_pending_s * 1000), levelOf(isRecluster ? "recluster_lag" : "lag", queue.oldest_pending_s)],
  ];
}

const jobsLink = (queue, n, state) => (n ? h("a", { href: `#/jobs/${queue.queue}/${state}` }, count(n)) : "0");

const deadLink = (queue) => (queue.dead ? h("a", { href: `#/dead/${queue.queue}` }, count(queue.dead)) : "0");

/** Summarise the present state of the queues. How earlier jobs ended is not part of it; the alerts cover that. */
function banner(queues) {
  const worries = queues.flatMap((queue) => {
    const hasNoWorker = !queue.consumers.some((consumer) => consumer.is_alive);
    return [
      queue.is_paused && ["warning", `${queue.queue} is paused`],
      hasNoWorker && ["critical", `${queue.queue} has no running worker`],
      queue.dead && !levelOf("dead", queue.dead) && ["warning", `${queue.queue}: ${count(queue.dead)} dead; dead letters are not retried until you requeue them`],
      ...figures(queue).map(([text, level], at) => level && [level, `${queue.queue}: ${HEADS[at]} ${text.textContent ?? text}`]),
    ].filter(Boolean);
  });
  if (!worries.length) return h("p", { class: "banner" }, "No job has waited too long, and there are no dead letters. For failures and latency, see the dashboard and the alerts.");
  const worst = worries.some(([level]) => level === "critical") ? "critical" : "warning";
  const link = h("p", {}, h("a", { href: "#/incidents" }, "Incidents: runbook, plots, jobs and actions"));
  return h("div", { class: `banner is-${worst}` }, h("strong", {}, worst === "critical" ? "Action needed" : "Warning"), h("ul", {}, worries.map(([, text]) => h("li", {}, text))), link);
}

function pauseButton(queue, again) {
  const action = queue.is_paused ? "resume" : "pause";
  return h(
    "button",
    { type: "button", onclick: () => act(queue.queue, action, {}, { title: `${queue.is_paused ? "Resume" : "Pause"} ${queue.queue}`, cli: ["queue", action, queue.queue], again }) },
    queue.is_paused ? "Resume…" : "Pause…",
  );
}

const rescueButton = (queue, again) => h("button", { type: "button", onclick: () => rescue(queue.queue, again) }, "Rescue orphans…");

function cancelButton(queue, again) {
  return h("button", { type: "button", onclick: () => cancelJobs(queue.queue, again) }, "Cancel jobs…");
}

/** Ask which jobs to cancel, then show the plan as for every action. */
async function cancelJobs(queue, again) {
  const title = `Cancel jobs of ${queue}`;
  const chosen = await ask({
    title,
    action: "Show the plan",
    cli: (values) => ({ "On the command line, to show the plan:": shell("queue", "cancel", queue, ...choice(values).words) }),
    body: [
      h("p", {}, "Waiting jobs are removed, and running ones are interrupted. Enter a job id, or a pet, an actor or both."),
      ["job id", "pet", "actor"].map((name) => h("p", {}, h("label", {}, `${name}: `, h("input", { name, size: 40 })))),
    ],
  });
  if (!chosen) return;
  const { body, words } = choice(chosen);
  act(queue, "cancel", body, { title, cli: ["queue", "cancel", queue, ...words], danger: true, again });
}

function choice(values) {
  const [job, pet, actor] = ["job id", "pet", "actor"].map((name) => values.get(name).trim());
  if (job) return { body: { job_ids: [job] }, words: [job] };
  return {
    body: { ...(pet && { pet_id: pet }), ...(actor && { actor }) },
    words: [...(pet ? ["--pet", pet] : []), ...(actor ? ["--actor", actor] : [])],
  };
}

function workers(queues, again) {
  const rows = queues.flatMap((queue) =>
    queue.consumers
      .filter((consumer) => consumer.pending)
      .map((consumer) => [
        h("td", {}, h("span", { class: "id" }, consumer.name)),
        queue.queue,
        number(count(consumer.pending)),
        number(consumer.heartbeat_age_s === null ? "never" : duration(consumer.heartbeat_age_s * 1000), consumer.is_alive ? null : "warning"),
        h(
          "td",
          { class: "actions" },
          may("apply_plan") && [button("Rescue…", queue, "rescue", consumer, again), " "],
          may("apply_plan") && !consumer.is_alive && button("Retire…", queue, "retire-consumer", consumer, again),
        ),
      ]),
  );
  const alive = new Set(queues.flatMap((queue) => queue.consumers.filter((consumer) => consumer.is_alive).map((consumer) => consumer.name)));
  return [
    h("p", { class: "quiet" }, `${count(alive.size)} worker ${alive.size === 1 ? "process is" : "processes are"} running. The table lists consumers that hold jobs.`),
    table(["consumer", "queue", { text: "holds", class: "number" }, { text: "last heartbeat", class: "number" }, ""], rows, { empty: "No consumer holds a job." }),
  ];
}

function button(text, queue, action, consumer, again) {
  const cli = ["queue", action, queue.queue, ...(action === "rescue" ? ["--consumer"] : []), consumer.name];
  const body = { consumer: consumer.name };
  return h("button", { type: "button", onclick: () => act(queue.queue, action, body, { title: `${text.replace("…", "")} ${consumer.name}`, cli, again }) }, text);
}

function auditTable(records) {
  const rows = records.map((record) => [when(record.at), record.by, record.action, record.queue, h("td", {}, record.state === "begun" ? "begun; it did not finish, and may be partly done" : record.result), record.note]);
  return table(["when", "by", "action", "queue", "result", "reason"], rows, { empty: "No action has been taken yet." });
}
