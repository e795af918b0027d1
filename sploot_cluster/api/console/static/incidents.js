// What would fire now: for each alert, its section of the runbook, the plot with its threshold, the jobs concerned, and actions.
//
// incidents.json lists the alerts that the queues and their history show; the thresholds are those of the alerts. An alert
// fires only if its condition lasts, so this page shows an incident earlier.

import { asset, get, may } from "./api.js";
import { act } from "./actions.js";
import { chart, charts } from "./charts.js";
import { command, count, duration, h } from "./dom.js";
import { jobTable, rescue } from "./jobs.js";

const BEYOND = { ">": (value, limit) => value > limit, ">=": (value, limit) => value >= limit, "<": (value, limit) => value < limit };
const RECLUSTER = "cluster.recluster";
const MAINTENANCE = "cluster.maintenance";
const JOBS_SHOWN = 5;

/** What each signal is of each queue; null where its alert does not watch it. */
const SIGNALS = {
  overdue: (queue) => queue.overdue,
  pending: (queue) => queue.in_flight,
  lag: (queue) => (queue.queue === RECLUSTER || queue.queue === MAINTENANCE ? null : queue.oldest_pending_s),
  oldest_age: (queue) => (queue.queue === RECLUSTER || queue.queue === MAINTENANCE ? null : queue.oldest_age_s),
  recluster_age: (queue) => (queue.queue === RECLUSTER ? queue.oldest_age_s : null),
  dead_new: (queue, past) => sum(past.dead.slice(-6)),
};

/** Signals of all queues together. The last step is not over, so rates are those of the step before and it. */
const TOTALS = {
  workers: ({ queues }) => new Set(queues.flatMap((queue) => queue.consumers.filter((one) => one.is_alive).map((one) => one.name))).size,
  failures: ({ history }) => Math.max(...[-2, -1].map((at) => (60 * sum(history.queues.map((past) => past.failed.at(at)))) / history.step_s)),
  latency: ({ history }) => Math.max(0, ...history.queues.flatMap((past) => past.p95_s.slice(-2)).filter((value) => value !== null)),
};

const sum = (values) => values.reduce((total, value) => total + value, 0);

export const incidents = {
  title: () => "Incidents",
  every: 10_000,
  async load() {
    const [{ queues }, history, known, runbook] = await Promise.all([get("queues"), get("queues/history"), asset("incidents.json"), asset("runbook.json"), charts()]);
    const found = firing({ queues, history }, known);
    await Promise.all(found.filter(({ queue }) => queue).map(concerned));
    return { history, found, runbook };
  },
  draw({ history, found, runbook }, _, again) {
    return [
      h("h1", {}, "Incidents"),
      found.length === 0
        ? h("p", { class: "banner" }, "No condition of an alert on the queues and their jobs holds now. Alerts on pods, Redis and Prometheus itself are not watched here.")
        : h("p", { class: "quiet" }, `${count(found.length)} ${found.length === 1 ? "condition of an alert holds" : "conditions of alerts hold"} now. An alert fires if its condition lasts.`),
      found.map((incident) => section(incident, history, runbook, again)),
    ];
  },
};

/** Return the conditions that hold; of several levels of one signal, the worst. */
function firing(state, known) {
  const found = [];
  const add = (alert, value, queue = null) => {
    if (value === null || value === undefined || !BEYOND[alert.comparator](value, alert.value)) return;
    if (found.some((one) => one.alert.signal === alert.signal && one.queue?.queue === queue?.queue)) return;
    found.push({ alert, value, queue });
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

function section(incident, history, runbook, again) {
  const { alert, value, queue } = incident;
  const key = `${alert.alert}-${queue?.queue ?? "all"}`;
  const text = alert.unit === "s" ? duration(1000 * value) : String(Number(value.toPrecision(3)));
  return h(
    "section",
    { class: `incident is-${alert.level}`, "aria-label": `${alert.alert} ${queue?.queue ?? ""}`.trim() },
    h("h2", {}, alert.alert, queue && h("span", { class: "quiet" }, ` ${queue.queue}`)),
    h("p", {}, h("strong", {}, text), ` ${alert.what} (${alert.level} at ${alert.comparator.replace(">=", "≥")} ${alert.value}${alert.unit ? ` ${alert.unit}` : ""})`, queue && h("span", { class: "quiet" }, `: ${queue.reason}`)),
    actions(incident, again),
    alert.plot && plot(incident, history),
    incident.jobs && jobTable(incident.jobs, { empty: "No such job at this moment." }),
    incident.groups?.length > 0 && h("ul", {}, incident.groups.map((group) => h("li", {}, h("a", { href: `#/dead/${group.queue}?error=${encodeURIComponent(group.error)}` }, group.error), ` ${count(group.n)} of ${group.actor ?? group.reason}`))),
    runbook[alert.alert] && h("details", { data: { key } }, h("summary", {}, "Runbook"), prose(runbook[alert.alert])),
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
function actions({ alert, queue }, again) {
  if (!queue) return alert.signal === "workers" ? command("sploot-cluster worker") : h("div", { class: "row" }, h("a", { href: "#/dead" }, "Dead letters by error"), h("a", { href: "#/activity" }, "All plots"));
  const name = queue.queue;
  const dead = queue.consumers.filter((one) => one.pending && !one.is_alive);
  const button = (text, action, body, cli) => h("button", { type: "button", onclick: () => act(name, action, body, { title: `${text.replace("…", "")} ${name}`, cli: ["queue", ...cli], again }) }, text);
  return h(
    "div",
    { class: "row" },
    may("apply_plan") && [
      queue.is_paused && button("Resume…", "resume", {}, ["resume", name]),
      dead.map((one) => button(`Rescue ${one.name}…`, "rescue", { consumer: one.name }, ["rescue", name, "--consumer", one.name])),
      queue.orphaned > 0 && h("button", { type: "button", onclick: () => rescue(name, again) }, "Rescue orphans…"),
      alert.jobs === "dead" && button("Requeue those of the last half hour…", "requeue", { matching: { since_s: 1800 } }, ["dead", "requeue", name, "--since", "30m"]),
    ],
    alert.jobs && h("a", { href: alert.jobs === "dead" ? `#/dead/${name}` : `#/jobs/${name}/${alert.jobs}` }, "All of them"),
  );
}

/** Draw a section of the runbook: paragraphs, lists, commands, `code` and **bold**; links become their text. */
function prose(text) {
  return text.split(/\n(?= *```)/).flatMap((block) => {
    const fenced = block.match(/^ *```\w*\n([\s\S]*?)\n *```\n?([\s\S]*)$/);
    if (!fenced) return paragraphs(block);
    const commands = fenced[1].split(/(?<!\\)\n/).map((line) => line.trim()).filter(Boolean);
    return [...commands.map(command), ...paragraphs(fenced[2])];
  });
}

const paragraphs = (text) => text.split(/\n(?=- |\n)/).map((part) => part.replace(/^- /, "").trim()).filter(Boolean).map((part) => h("p", {}, inline(part)));

const inline = (text) =>
  text
    .replace(/\[([^\]]+)\]\([^)]*\)/g, "$1")
    .replace(/\s+/g, " ")
    .split(/(\*\*[^*]+\*\*|`[^`]+`)/)
    .map((part) => (part.startsWith("**") ? h("strong", {}, part.slice(2, -2)) : part.startsWith("`") ? h("code", {}, part.slice(1, -1)) : part));
