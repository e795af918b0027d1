// The page of the queues: their numbers, their workers, why work waits, and the audit log.

import { get, may } from "./api.js";
import { advice, ask, count, duration, h, number, shell, shortName, table, when } from "./dom.js";
import { act, inverseOf, pauseButton, switchButton } from "./actions.js";
import { rescue } from "./jobs.js";
import { petLink } from "./names.js";
import { levelOf, thresholds } from "./thresholds.js";

const RECLUSTER = "cluster.recluster";

export const queues = {
  title: () => "Queues",
  every: 5000,
  news: ({ queues: { queues }, workers: { workers }, periodic: { jobs: periodic }, audit }) => ({ queues, workers, periodic, audit: audit ?? null }),
  async load() {
    // only operators may read the audit log; others see the page without it
    const auditLog = may("get_audit") ? get("queues/audit?limit=10") : null;
    const [{ queues }, { workers }, { jobs: periodic }, audit] = await Promise.all([get("queues"), get("queues/workers"), get("queues/periodic"), auditLog, thresholds()]);
    return { queues, workers, periodic, audit };
  },
  draw({ queues, workers, periodic, audit }, _, again) {
    // each queue has two rows: its figures, and why its jobs wait
    const rows = queues.flatMap((queue) => [
      [
        h("strong", {}, queue.queue),
        ...figures(queue).map(([text, level]) => number(text, level)),
        h("td", { class: "actions", rowspan: 2 }, may("apply_plan") && [queue.orphaned > 0 && [rescueButton(queue, again), " "], pauseButton(queue, again), " ", cancelButton(queue, again)]),
      ],
      [h("td", { class: "reason", colspan: HEADS.length + 1 }, h("div", { class: "quiet sentence" }, advice(queue.reason)))],
    ]);
    return [
      h("h1", {}, "Queues"),
      banner(queues),
      table(["queue", ...HEADS.map((text) => ({ text, class: "number" })), ""], rows),
      h("h2", {}, "Workers"),
      workerTable(workers, again),
      h("h2", {}, "Periodic jobs"),
      periodicTable(periodic),
      audit && [h("h2", {}, "Audit log"), auditTable(audit.records, queues, again)],
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

const phrase = (head, text) => (head === "oldest" ? `the oldest job is ${text} old` : head === "held for" ? `the oldest running job is held for ${text}` : `${text} ${head}`);

/** Summarise the current state of the queues. How earlier jobs ended is not part of it; the alerts cover that. */
function banner(queues) {
  const isIdle = (queue) => !queue.consumers.some((consumer) => consumer.is_alive);
  const areAllIdle = queues.every(isIdle);
  const worries = queues.flatMap((queue) => {
    return [
      queue.is_paused && ["warning", `${queue.queue} is paused`],
      !areAllIdle && isIdle(queue) && ["critical", `${queue.queue} has no running worker`],
      queue.dead && !levelOf("dead", queue.dead) && ["warning", `${queue.queue}: ${count(queue.dead)} dead; dead letters are not retried until you requeue them`],
      ...figures(queue).map(([text, level], at) => level && [level, `${queue.queue}: ${phrase(HEADS[at], text.textContent ?? text)}`]),
    ].filter(Boolean);
  });
  if (areAllIdle) worries.unshift(["critical", "No worker is running, so jobs wait until one is started"]);
  if (!worries.length) return h("p", { class: "banner" }, "No job has waited too long, and there are no dead letters. For failures and latency, see the dashboard and the alerts.");
  const worst = worries.some(([level]) => level === "critical") ? "critical" : "warning";
  const link = h("p", {}, h("a", { href: "#/incidents" }, "Incidents: runbook, plots, jobs and actions"));
  return h("div", { class: `banner is-${worst}` }, h("strong", {}, worst === "critical" ? "Action needed" : "Warning"), h("ul", {}, worries.map(([, text]) => h("li", {}, text))), link);
}

const rescueButton = (queue, again) => h("button", { type: "button", onclick: () => rescue(queue.queue, again) }, "Rescue orphans…");

function cancelButton(queue, again) {
  return h("button", { type: "button", onclick: () => cancelJobs(queue.queue, again) }, "Cancel jobs…");
}

/** Ask which jobs to cancel, then show the plan, as for every action. */
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

/** Draw the worker processes and what each is doing. */
function workerTable(workers, again) {
  const rows = workers.map((worker) => [
    h("td", {}, h("strong", { class: "id", title: worker.name }, shortName(worker.name)), h("p", { class: "quiet" }, worker.queues.join(", "))),
    h("td", {}, worker.jobs.length ? worker.jobs.map(held) : h("span", { class: "quiet" }, "idle"), more(worker)),
    number(worker.heartbeat_age_s === null ? "never" : duration(worker.heartbeat_age_s * 1000), worker.is_alive ? null : "critical"),
    h("td", { class: "actions" }, may("apply_plan") && !worker.is_alive && queuesOf(worker).map((queue) => [button("Rescue…", queue, "rescue", worker, again), " ", button("Retire…", queue, "retire-consumer", worker, again)])),
  ]);
  const n = workers.filter((worker) => worker.is_alive).length;
  return [
    h("p", { class: "quiet" }, `${count(n)} worker ${n === 1 ? "process is" : "processes are"} running.`),
    rows.length > 0 && table(["worker", "now", { text: "last heartbeat", class: "number" }, ""], rows),
  ];
}

const queuesOf = (worker) => [...new Set(worker.jobs.map(({ job }) => job.queue))];

const more = ({ n_jobs: n, jobs }) => n > jobs.length && h("p", { class: "quiet" }, jobs.length ? `and ${count(n - jobs.length)} more` : `holds ${count(n)} jobs`);

function held({ job, progress }) {
  const name = job.job_id ? h("a", { href: `#/job/${encodeURIComponent(job.job_id)}` }, job.actor ?? job.job_id) : job.actor ?? job.entry_id;
  const pet = job.pet_id && [" of pet ", petLink(job.pet_id)];
  return h("p", { class: "held" }, name, pet, h("span", { class: "quiet" }, ` for ${duration(Date.now() - new Date(job.started_at))}`), progress && bar(progress));
}

function bar({ done, total, note }) {
  const share = total ? Math.min(1, done / total) : null;
  const text = [share === null ? count(done) : `${Math.round(100 * share)} %`, note].filter(Boolean).join(", ");
  return [h("br"), h("progress", { max: 1, ...(share !== null && { value: share }), "aria-label": "Progress" }), h("span", { class: "quiet" }, ` ${text}`)];
}

function periodicTable(jobs) {
  const rows = jobs.map((job) => [
    h("td", {}, h("strong", {}, job.actor), h("p", { class: "quiet" }, `every ${job.every_s} s`)),
    when(job.last_run_at),
    h("td", {}, job.outcome ? h("span", { class: `state is-${job.outcome === "failed" ? "dead" : job.outcome}` }, job.outcome) : "has not run", job.duration_s !== null && h("span", { class: "quiet" }, ` in ${duration(1000 * job.duration_s)}`), job.error && h("p", { class: "quiet" }, job.error)),
    h("td", {}, job.next_at ? when(job.next_at) : h("strong", { class: "is-critical" }, job.last_sent_at ? "the scheduler is silent" : "no scheduler has run")),
  ]);
  return table(["job", "last run", "outcome", "next run"], rows);
}

function button(text, queue, action, worker, again) {
  const cli = ["queue", action, queue, ...(action === "rescue" ? ["--consumer"] : []), worker.name];
  const body = { consumer: worker.name };
  return h("button", { type: "button", onclick: () => act(queue, action, body, { title: `${text.replace("…", "")} ${worker.name}`, cli, again }) }, text);
}

/** Draw the audit log, with a button for each action that is in effect and can be reversed. */
function auditTable(records, queues, again) {
  const isHeld = ({ action, queue, state }, at) =>
    state === "done" && action === (queues.find((one) => one.queue === queue)?.is_paused ? "pause" : "resume") && records.findIndex((one) => one.queue === queue && inverseOf(one.action)) === at;
  const rows = records.map((record, at) => [
    when(record.at),
    record.by,
    record.action,
    record.queue,
    h("td", {}, record.state === "begun" ? "begun; it did not finish, and may be partly done" : record.result),
    record.note,
    h("td", { class: "actions" }, may("apply_plan") && isHeld(record, at) && switchButton("Take back…", record.queue, inverseOf(record.action), again)),
  ]);
  return table(["when", "by", "action", "queue", "result", "reason", ""], rows, { empty: "No action has been taken yet." });
}
