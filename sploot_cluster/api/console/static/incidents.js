// The alerts whose conditions hold: for each, its runbook section, a plot with the threshold, the affected jobs, and
// actions.
//
// incidents.json lists the alerts that the queues and their history show; the thresholds are those of the alerts. An alert
// fires only if its condition lasts, so this page shows an incident earlier. Alerts link to #/incidents/<name>: that
// alert is shown first, with its runbook open, whether or not its condition holds now.

import { asset, get, may } from "./api.js";
import { act, pauseButton } from "./actions.js";
import { chart, charts } from "./charts.js";
import { advice, command, count, duration, h, shortName } from "./dom.js";
import { jobTable, rescue } from "./jobs.js";

const BEYOND = { ">": (value, limit) => value > limit, ">=": (value, limit) => value >= limit, "<": (value, limit) => value < limit };
const RECLUSTER = "cluster.recluster";
const MAINTENANCE = "cluster.maintenance";
const JOBS_SHOWN = 5;

/** Signal -> its value for a queue; null for a queue that its alert does not watch. */
const SIGNALS = {
  overdue: (queue) => queue.overdue,
  pending: (queue) => queue.in_flight,
  lag: (queue) => (queue.queue === RECLUSTER || queue.queue === MAINTENANCE ? null : queue.oldest_pending_s),
  oldest_age: (queue) => (queue.queue === RECLUSTER || queue.queue === MAINTENANCE ? null : queue.oldest_age_s),
  recluster_age: (queue) => (queue.queue === RECLUSTER ? queue.oldest_age_s : null),
  dead_new: (queue, past) => sum(past.dead.slice(-6)),
};

/** Signal -> its value over all queues. The last step is incomplete, so rates use the last two steps. */
const TOTALS = {
  workers: ({ queues }) => new Set(queues.flatMap((queue) => queue.consumers.filter((one) => one.is_alive).map((one) => one.name))).size,
  failures: ({ history }) => Math.max(...[-2, -1].map((at) => (60 * sum(history.queues.map((past) => past.failed.at(at)))) / history.step_s)),
  latency: ({ history }) => Math.max(0, ...history.queues.flatMap((past) => past.p95_s.slice(-2)).filter((value) => value !== null)),
};

const sum = (values) => values.reduce((total, value) => total + value, 0);

export const incidents = {
  title: () => "Incidents",
  every: 10_000,
  /** Show new figures; reload the page if a condition has begun or ceased to hold. */
  news({ queues: { queues } }, data) {
    const found = firing({ queues, history: data.history }, data.known);
    if (found.map(keyOf).join() !== data.found.map(keyOf).join()) return null;
    return { ...data, found: found.map((incident, at) => ({ ...data.found[at], ...incident })) };
  },
  async load() {
    const [{ queues }, history, known, runbook] = await Promise.all([get("queues"), get("queues/history"), asset("incidents.json"), asset("runbook.json"), charts()]);
    const found = firing({ queues, history }, known);
    await Promise.all(found.filter(({ queue }) => queue).map(concerned));
    return { history, found, runbook, known };
  },
  draw({ history, found, runbook, known }, { rest: [name] }, again) {
    const isNamed = ({ alert }) => alert.alert === name;
    const named = found.filter(isNamed);
    return [
      h("h1", {}, "Incidents"),
      name && named.length === 0 && over(name, runbook[name], known.some((alert) => alert.alert === name)),
      named.map((incident) => section(incident, history, runbook, again, { open: true })),
      name && h("h2", {}, "All conditions"),
      found.length === 0
        ? h("p", { class: "banner" }, "No condition of an alert on the queues and their jobs holds now. Alerts on pods, Redis and Prometheus itself are not watched here.")
        : h("p", { class: "quiet" }, `${count(found.length)} ${found.length === 1 ? "condition of an alert holds" : "conditions of alerts hold"} now. An alert fires if its condition lasts.`),
      found.filter((incident) => !isNamed(incident)).map((incident) => section(incident, history, runbook, again)),
    ];
  },
};

const keyOf = ({ alert, queue }) => `${alert.alert}-${queue?.queue ?? "all"}`;

/** Draw an alert whose condition does not hold now, or is not watched here. */
function over(name, text, isWatched) {
  const state = isWatched ? "The condition of this alert does not hold now." : "This page does not watch the condition of this alert; the dashboard does.";
  return h(
    "section",
    { class: `incident ${isWatched ? "is-over" : ""}`, "aria-label": name },
    h("h2", {}, name),
    h("p", {}, text ? state : "There is no alert of this name."),
    text && h("details", { open: true, data: { key: `${name}-runbook` } }, h("summary", {}, "Runbook"), prose(text)),
  );
}

/** Return the conditions that hold; if several levels of one signal do, only the worst. */
function firing(state, known) {
  const found = [];
  const failing = state.queues.filter((queue) => sum(state.history.queues.find((past) => past.queue === queue.queue)?.failed.slice(-2) ?? []) > 0);
  const add = (alert, value, queue = null) => {
    if (value === null || value === undefined || !BEYOND[alert.comparator](value, alert.value)) return;
    if (found.some((one) => one.alert.signal === alert.signal && one.queue?.queue === queue?.queue)) return;
    found.push({ alert, value, queue, ...(alert.signal === "failures" && { failing }) });
  };
  for (const alert of known) {
    if (alert.signal in TOTALS) add(alert, TOTALS[alert.signal](state));
    else for (const queue of state.queues) add(alert, SIGNALS[alert.signal](queue, state.history.queues.find((past) => past.queue === queue.queue)), queue);
  }
  return found.sort((one, other) => (one.alert.level === other.alert.level ? 0 : one.alert.level === "critical" ? -1 : 1));
}

/** Load the jobs that an incident is about. */
async function concerned(incident) {
  const queue = encodeURIComponent(incident.queue.queue);
  if (incident.alert.jobs === "dead") incident.groups = may("group_dead_letters") ? (await get(`queues/${queue}/dead/groups?since_s=1800`)).groups : [];
  else if (incident.alert.jobs) incident.jobs = (await get(`queues/${queue}/jobs?state=${incident.alert.jobs}&limit=${JOBS_SHOWN}`)).jobs;
}

function section(incident, history, runbook, again, { open = false } = {}) {
  const { alert, value, queue } = incident;
  const key = keyOf(incident);
  const text = alert.unit === "s" ? duration(1000 * value) : String(Number(value.toPrecision(3)));
  return h(
    "section",
    { class: `incident is-${alert.level}`, "aria-label": `${alert.alert} ${queue?.queue ?? ""}`.trim() },
    h("h2", {}, h("a", { href: `#/incidents/${alert.alert}` }, alert.alert), queue && h("span", { class: "quiet" }, ` ${queue.queue}`)),
    h("p", {}, `${alert.what[0].toUpperCase()}${alert.what.slice(1)}: `, h("strong", {}, text), ` (${alert.level} at ${alert.comparator.replace(">=", "≥")} ${alert.value}${alert.unit ? ` ${alert.unit}` : ""}).`),
    queue && h("div", { class: "quiet sentence" }, advice(queue.reason)),
    actions(incident, again),
    alert.plot && plot(incident, history),
    incident.jobs && jobTable(incident.jobs, { empty: "No such job at this moment." }),
    incident.groups?.length > 0 && h("ul", {}, incident.groups.map((group) => h("li", {}, h("a", { href: `#/dead/${group.queue}?error=${encodeURIComponent(group.error)}` }, group.error), ` ${count(group.n)} of ${group.actor ?? group.reason}`))),
    runbook[alert.alert] && h("details", { open, data: { key } }, h("summary", {}, "Runbook"), prose(runbook[alert.alert])),
  );
}

function plot({ alert, queue }, history) {
  const of = history.queues.filter((past) => !queue || past.queue === queue.queue);
  const scale = alert.plot === "failed" ? 60 / history.step_s : 1;
  const values = (past) => past[alert.plot].map((value) => (value === null ? null : value * scale));
  const isSame = alert.plot !== "waiting" && alert.plot !== "dead";
  return chart({
    title: alert.plot === "waiting" ? "Waiting jobs, largest" : alert.plot === "dead" ? "New dead letters per five minutes" : alert.what,
    unit: alert.unit,
    times: history.times,
    series: of.map((past) => [past.queue, values(past)]),
    limits: isSame ? [[alert.value, alert.level]] : [],
    marks: history.times.filter((_, at) => history.starts[at]),
    group: "incidents",
  });
}

/** Draw the actions that the runbook names for an incident, each with its plan, and the links to the jobs. */
function actions({ alert, queue, jobs, failing = [] }, again) {
  if (alert.signal === "workers") return command("sploot-cluster worker");
  const links = queue
    ? [alert.jobs && h("a", { href: alert.jobs === "dead" ? `#/dead/${queue.queue}` : `#/jobs/${queue.queue}/${alert.jobs}` }, "All of them")]
    : [h("a", { href: "#/dead" }, "Dead letters by error"), h("a", { href: "#/activity" }, "All plots")];
  return h("div", { class: "row" }, may("apply_plan") && (queue ? ofQueue(alert, queue, jobs ?? [], again) : failing.map((one) => labelled(one, again))), links);
}

/** Return a pause button that names its queue. */
function labelled(queue, again) {
  const button = pauseButton(queue, again);
  button.textContent = `${queue.is_paused ? "Resume" : "Pause"} ${queue.queue}…`;
  return button;
}

function ofQueue(alert, queue, jobs, again) {
  const name = queue.queue;
  const dead = queue.consumers.filter((one) => one.pending && !one.is_alive);
  // workers that are alive but whose jobs hang; rescuing these jobs may run them twice, so the operator has to allow it
  const hanging = alert.signal === "overdue" ? [...new Set(jobs.filter((job) => job.is_worker_alive).map((job) => job.worker))] : [];
  const button = (text, action, body, cli) => h("button", { type: "button", onclick: () => act(name, action, body, { title: `${text.replace("…", "")} ${name}`, cli: ["queue", ...cli], again }) }, text);
  return [
    dead.map((one) => button(`Rescue ${shortName(one.name)}…`, "rescue", { consumer: one.name }, ["rescue", name, "--consumer", one.name])),
    hanging.map((worker) => button(`Rescue ${shortName(worker)} although it is alive…`, "rescue", { consumer: worker, even_if_alive: true }, ["rescue", name, "--consumer", worker, "--even-if-alive"])),
    queue.orphaned > 0 && h("button", { type: "button", onclick: () => rescue(name, again) }, "Rescue orphans…"),
    alert.jobs === "dead" && button("Requeue those of the last half hour…", "requeue", { matching: { since_s: 1800 } }, ["dead", "requeue", name, "--since", "30m"]),
    pauseButton(queue, again),
  ];
}

/** Draw a section of the runbook: paragraphs, lists, commands, `code` and **bold**; links are shown as plain text. */
function prose(text) {
  const parts = text.split(/\n *```\w*\n([\s\S]*?)\n *```/);
  const commandsOf = (code) => code.split(/(?<!\\)\n/).map((line) => line.trim()).filter(Boolean).map(command);
  return parts.flatMap((part, at) => (at % 2 ? commandsOf(part) : paragraphs(part)));
}

const paragraphs = (text) => text.split(/\n(?=- |\n)/).map((part) => part.replace(/^- /, "").trim()).filter(Boolean).map((part) => h("p", {}, inline(part)));

const inline = (text) =>
  text
    .replace(/\[([^\]]+)\]\([^)]*\)/g, "$1")
    .replace(/\s+/g, " ")
    .split(/(\*\*[^*]+\*\*|`[^`]+`)/)
    .map((part) => (part.startsWith("**") ? h("strong", {}, part.slice(2, -2)) : part.startsWith("`") ? h("code", {}, part.slice(1, -1)) : part));
