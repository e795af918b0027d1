// The activity of the queues in the last 24 hours: throughput, failures, latency and backlog.

import { get } from "./api.js";
import { chart, charts } from "./charts.js";
import { h } from "./dom.js";
import { changes, figuresOfJobs } from "./pushed.js";
import { limitsOf, thresholds } from "./thresholds.js";

// Workers add their counts every ten seconds. The response is too large to load it more often than that.
const hasChanged = changes(10_000);

export const activity = {
  title: () => "Activity",
  every: 60_000,
  news: ({ queues: { queues } }, history) => (hasChanged(queues.map(figuresOfJobs)) ? null : history),
  async load() {
    const [history] = await Promise.all([get("queues/history"), thresholds(), charts()]);
    return history;
  },
  draw(history) {
    const { times, queues, step_s: step } = history;
    const marks = times.filter((_, at) => history.starts[at]);
    const of = (values) => queues.map((queue) => [queue.queue, values(queue)]);
    const perMinute = (counts) => counts.map((n) => (60 * n) / step);
    const plot = (title, unit, values, limits = []) => chart({ title, unit, times, series: of(values), limits, marks });
    const isEmpty = queues.every((queue) => [...queue.done, ...queue.failed, ...queue.dead].every((n) => !n));
    return [
      h("h1", {}, "Activity"),
      h("p", { class: "quiet" }, "The last 24 hours in steps of five minutes, in UTC. Vertical lines: worker processes started. Horizontal lines: thresholds of the alerts."),
      isEmpty && h("p", { class: "banner is-warning" }, "No job has ended in the last 24 hours, or no worker of this version has run."),
      h(
        "div",
        { class: "charts" },
        plot("Jobs done per minute", "", (queue) => perMinute(queue.done)),
        plot("Failed attempts per minute", "", (queue) => perMinute(queue.failed), limitsOf("failures")),
        plot("Duration, 95 %", "s", (queue) => queue.p95_s, limitsOf("latency")),
        plot("Duration, median", "s", (queue) => queue.p50_s),
        plot("Waiting jobs, largest", "", (queue) => queue.waiting, limitsOf("undelivered")),
        plot("Age of the oldest job", "s", (queue) => queue.oldest_s, limitsOf("oldest_age")),
        plot("New dead letters", "", (queue) => queue.dead),
      ),
    ];
  },
};
