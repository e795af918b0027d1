// Dead letters: why jobs failed permanently, and the actions to requeue or purge them.

import { get } from "./api.js";
import { canaries } from "./canary.js";
import { write } from "./exact.js";
import { count, duration, go, h, notice, number, table, when } from "./dom.js";
import { act } from "./actions.js";
import { pager } from "./jobs.js";
import { petLink } from "./names.js";
import { kept } from "./pushed.js";

const FILTERS = { reason: "reason", actor: "actor", pet_id: "pet", error: "error contains" };
const PAGE = 100;

let known = null;

export const dead = {
  title: () => "Dead letters",
  every: 30_000,
  news: ({ queues: { queues } }, data) => kept(data, figuresOf(queues)),
  // shown above an error, so that a filter that the server refuses can be corrected
  form: ({ rest: [queue], query }) => known && filters(known, queue ?? known[0].queue, filterOf(query)),
  async load({ rest: [queue], query }) {
    const loadedAt = performance.now();
    const { queues } = await get("queues");
    known = queues;
    const chosen = queue ?? queues.reduce((most, one) => (one.dead > most.dead ? one : most)).queue;
    const wanted = new URLSearchParams([...query].filter(([name, value]) => name in FILTERS && value));
    wanted.set("limit", PAGE);
    if (query.get("cursor")) wanted.set("cursor", query.get("cursor"));
    const path = `queues/${encodeURIComponent(chosen)}/dead`;
    const [page, { groups }, { canaries: runs }] = await Promise.all([get(`${path}?${wanted}`), get(`${path}/groups`), get("queues/canaries")]);
    return { queues, chosen, deadLetters: page.dead_letters, cursor: page.next_cursor, groups, runs: runs.filter((run) => run.queue === chosen), loadedAt, figures: figuresOf(queues) };
  },
  draw({ queues, chosen, deadLetters, cursor, groups, runs }, { query }, again) {
    const total = queues.find((queue) => queue.queue === chosen)?.dead ?? 0;
    const filter = filterOf(query);
    const filtered = Object.keys(filter).length > 0;
    const options = Object.entries(filter).flatMap(([name, value]) => [name === "pet_id" ? "--pet" : `--${name}`, value]);
    const which = filtered ? "all matches" : "all";
    const cli = (verb) => ["queue", "dead", verb, chosen, ...(filtered ? options : ["--all"])];
    return [
      h("h1", {}, "Dead letters"),
      filters(queues, chosen, filter),
      canaries(runs, again),
      h("p", { class: "quiet" }, filtered ? `${count(deadLetters.length)}${deadLetters.length === PAGE ? " or more" : ""} of ${count(total)} match.` : `${count(total)} in ${chosen}${total > 0 ? ", newest first" : ""}${total > PAGE ? `; ${PAGE} per page` : ""}.`),
      deadLetters.length > 0 && h(
        "div",
        { class: "row" },
        h("button", { type: "button", onclick: () => act(chosen, "requeue", { matching: filter }, { title: `Requeue ${which} of ${chosen}`, cli: cli("requeue"), again }) }, `Requeue ${which}…`),
        h("button", { type: "button", onclick: () => act(chosen, "purge", { matching: filter }, { title: `Purge ${which} of ${chosen} permanently`, cli: cli("purge"), danger: true, again }) }, `Purge ${which}…`),
      ),
      !filtered && groups.length > 1 && groupTable(groups, chosen, again),
      table(["died", "reason", "actor", "pet", "error", ""], deadLetters.map((deadLetter) => row(deadLetter, chosen, again)), { empty: filtered ? "No dead letter matches." : "No dead letters: every job of this queue succeeded, or is retried." }),
      pager(`#/dead/${chosen}`, query, cursor),
    ];
  },
};

const figuresOf = (queues) => queues.map(({ queue, dead }) => [queue, dead]);

/** Draw the kinds of failures, each with a link that filters for it, and its actions. */
function groupTable(groups, queue, again) {
  const rows = groups.map((group) => {
    const filter = { reason: group.reason, ...(group.actor && { actor: group.actor }), ...(group.error !== group.reason && { error: group.error }) };
    const options = Object.entries(filter).flatMap(([name, value]) => [`--${name}`, value]);
    const button = (text, action, more) => h("button", { type: "button", onclick: () => act(queue, action, { matching: filter }, { title: `${text} ${group.error} of ${queue}`, cli: ["queue", "dead", action, queue, ...options], again, ...more }) }, `${text}…`);
    return [
      h("td", {}, h("a", { href: `#/dead/${queue}?${new URLSearchParams(filter)}` }, group.error), h("p", { class: "quiet" }, [group.reason, group.actor, group.field].filter(Boolean).join(", "))),
      number(count(group.n)),
      when(group.oldest),
      when(group.newest),
      h("td", { class: "actions" }, button("Requeue", "requeue"), " ", button("Purge", "purge", { danger: true })),
    ];
  });
  return [h("h2", {}, "By error"), table(["error", { text: "dead letters", class: "number" }, "oldest", "newest", ""], rows), h("h2", {}, "All")];
}

const filterOf = (query) => Object.fromEntries([...query].filter(([name, value]) => name in FILTERS && value));

function filters(queues, chosen, filter) {
  const queue = h("select", { "aria-label": "Queue" }, queues.map((one) => h("option", { value: one.queue, ...(one.queue === chosen ? { selected: true } : {}) }, `${one.queue} (${count(one.dead)})`)));
  const inputs = Object.entries(FILTERS).map(([name, label]) => h("input", { name, value: filter[name] ?? "", placeholder: label, "aria-label": label, size: 14 }));
  const apply = () => {
    const wanted = new URLSearchParams(inputs.filter((input) => input.value.trim()).map((input) => [input.name, input.value.trim()]));
    go(`#/dead/${queue.value}${[...wanted].length ? `?${wanted}` : ""}`);
  };
  queue.addEventListener("change", apply);
  return h("form", { class: "row filters", onsubmit: (event) => (event.preventDefault(), apply()) }, queue, inputs, h("button", { class: "main" }, "Filter"));
}

function row(deadLetter, queue, again) {
  const details = h("details", { data: { keep: deadLetter.dead_letter_id } }, h("summary", {}, deadLetter.error.slice(0, 300)));
  details.addEventListener("toggle", () => details.open && open(details, deadLetter, queue), { once: true });
  const cli = ["queue", "dead", "requeue", queue, deadLetter.dead_letter_id];
  return [
    when(deadLetter.died_at),
    deadLetter.reason,
    deadLetter.actor ?? "–",
    deadLetter.pet_id ? petLink(deadLetter.pet_id) : "–",
    h("td", {}, details, deadLetter.hint && h("p", { class: "quiet" }, `Fix: ${deadLetter.hint}`)),
    h("td", { class: "actions" }, h("button", { type: "button", onclick: () => act(queue, "requeue", { dead_letter_ids: [deadLetter.dead_letter_id] }, { title: `Requeue ${deadLetter.dead_letter_id}`, cli, again }) }, "Requeue…")),
  ];
}

async function open(details, deadLetter, queue) {
  try {
    const whole = await get(`queues/${encodeURIComponent(queue)}/dead/${encodeURIComponent(deadLetter.dead_letter_id)}`);
    details.append(
      h("dl", {}, [
        ["dead letter", whole.dead_letter_id],
        ["job", whole.message_id ? h("a", { href: `#/job/${encodeURIComponent(whole.message_id)}` }, whole.message_id) : "–"],
        ["deliveries", whole.deliveries],
        ["age", duration(Date.now() - new Date(whole.died_at))],
      ].map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      ...(whole.traceback ? [h("pre", {}, whole.traceback)] : []),
      h("pre", {}, write(whole.fields, 2)),
    );
  } catch (error) {
    notice(error.message, { kind: "bad" });
  }
}
