// The page of one pet: its clusters, its history, and the corrections that can be made.

import { asset, follow, get, may, post } from "./api.js";
import { ask, count, go, h, notice, shell, inform, table, when } from "./dom.js";
import { byId } from "./exact.js";
import { watch } from "./job.js";

const WAYS = { core: "found by density", arrived: "assigned on arrival", absorbed: "absorbed, low confidence", corrected: "placed by a person" };
const SHOWN = 200;

// The selection survives only a reload of the same pet. It holds either clusters, or items that are all in the same cluster,
// `from`, or all noise (`from` is null). The boxes that are ticked are always exactly the selection.
const nothing = (pet) => ({ pet, clusters: new Set(), from: undefined, media: new Set() });
let chosen = nothing(null);

export const pet = {
  title: ({ rest }) => (rest[0] ? `Pet ${rest[0]}` : "Pets"),
  every: null,
  async load({ rest: [id] }) {
    if (!id) return null;
    const base = `pets/${encodeURIComponent(id)}`;
    const [clusters, history, corrections] = await Promise.all([get(`${base}/clusters`), get(`${base}/history?limit=50`), asset("corrections.json")]);
    if (chosen.pet !== id) chosen = nothing(id);
    return { id, clusters, history, corrections };
  },
  form({ rest }) {
    const id = h("input", { name: "pet", value: rest[0] ?? "", required: true, inputmode: "numeric", pattern: "[1-9][0-9]*", placeholder: "pet id", "aria-label": "Pet id" });
    return h("form", { class: "row", onsubmit: (event) => (event.preventDefault(), go(`#/pet/${id.value.trim()}`)) }, id, h("button", { class: "main" }, "Show"));
  },
  draw(data, visit, again) {
    const form = pet.form(visit);
    if (!data) return [h("h1", {}, "Pets"), form];
    const { clusters: view } = data;
    keepWhatIsShown(view);
    const hidden = view.clusters.filter((cluster) => cluster.is_hidden);
    return [
      h("h1", {}, `Pet ${data.id}`),
      form,
      h("p", { class: "quiet" }, `${count(view.n_media)} items in ${count(view.clusters.length)} clusters, ${count(view.n_noise)} noise${view.dismissed.length ? `, ${count(view.dismissed.length)} dismissed` : ""} · revision ${view.revision}`, view.model ? ` · model ${view.model}, ${view.dim} dimensions` : ""),
      verbs(data, again),
      h("div", { class: "key" }, Object.entries(WAYS).map(([way, text]) => h("span", {}, h("span", { class: `dot is-${way}` }, "■ "), text))),
      h("h2", {}, "Clusters"),
      view.clusters.length ? clusterCards(view.clusters.filter((cluster) => !cluster.is_hidden), data, again) : h("p", { class: "quiet" }, "No clusters yet."),
      hidden.length > 0 && h("details", { open: hidden.some((cluster) => chosen.clusters.has(cluster.cluster_id)) }, h("summary", {}, `Hidden (${count(hidden.length)})`), clusterCards(hidden, data, again)),
      h("h2", {}, "Noise"),
      view.n_noise ? mediaList(view.noise, null, data, again) : h("p", { class: "quiet" }, "Every item is in a cluster."),
      view.dismissed.length > 0 && [h("h2", {}, "Dismissed"), h("p", { class: "quiet" }, "A person dismissed these items: they are in no cluster."), mediaList(view.dismissed, null, data)],
      h("h2", {}, "History"),
      historyTable(data, again),
    ];
  },
};

// What each kind of verb needs from the selection; null if the selection lacks it.
const FILLED = {
  "several clusters": ({ clusters }) => (clusters.size > 1 ? { cluster_ids: [...clusters].sort(byId) } : null),
  clusters: ({ clusters }) => (clusters.size ? { cluster_ids: [...clusters].sort(byId) } : null),
  cluster: ({ clusters }) => (clusters.size === 1 ? { cluster_id: [...clusters][0] } : null),
  "items of one cluster": ({ from, media }) => (media.size && from !== null ? { cluster_id: from, media_ids: [...media] } : null),
  items: ({ media }) => (media.size ? { media_ids: [...media] } : null),
};

const CHOOSE = { "several clusters": "clusters", clusters: "clusters", cluster: "a cluster", "items of one cluster": "items", items: "items" };

function verbs(data, again) {
  const button = (verb) => {
    const filled = FILLED[verb.takes](chosen);
    const text = filled ? `${counted(filled)}…` : `choose ${CHOOSE[verb.takes]}`;
    return h("button", { type: "button", class: filled ? "main" : null, disabled: !filled, onclick: () => correct(data, verb, filled, again) }, `${verb.button}: ${text}`);
  };
  return h(
    "div",
    { class: "row", id: "verbs" },
    may("recluster") && h("button", { type: "button", onclick: () => recluster(data, again) }, "Recluster…"),
    data.corrections.verbs.filter((verb) => FILLED[verb.takes] && may(verb.operation)).map(button),
    (chosen.clusters.size > 0 || chosen.media.size > 0) && h("button", { type: "button", onclick: () => (clearSelection(), again()) }, "Clear selection"),
  );
}

const manyItems = (n) => `${count(n)} ${n === 1 ? "item" : "items"}`;

const clearSelection = () => (chosen = nothing(chosen.pet));

/** Start a new selection with the box that was just ticked, and untick all other boxes. */
function startSelection(ticked) {
  const n = chosen.clusters.size + chosen.media.size;
  clearSelection();
  for (const box of document.querySelectorAll("#main input[type=checkbox]:checked")) {
    if (box === ticked) continue;
    box.checked = false;
    box.closest(".cluster.is-chosen")?.classList.remove("is-chosen");
  }
  if (n) notice(`${count(n)} unticked: a correction applies to clusters, or to items of one cluster.`);
}

/** Remove from the selection what the page no longer shows. */
function keepWhatIsShown(view) {
  const before = chosen.clusters.size + chosen.media.size;
  const media = new Map([[null, view.noise], ...view.clusters.map((cluster) => [cluster.cluster_id, cluster.media_ids])]);
  const shown = new Set(media.get(chosen.from)?.slice(0, SHOWN));
  chosen.clusters = new Set([...chosen.clusters].filter((id) => media.has(id)));
  chosen.media = new Set([...chosen.media].filter((item) => shown.has(item)));
  const gone = before - chosen.clusters.size - chosen.media.size;
  if (gone) notice(`${count(gone)} unticked: no longer in the same place.`);
}

function redrawVerbs(data, again) {
  document.getElementById("verbs").replaceWith(verbs(data, again));
}

const clusterCards = (clusters, data, again) => h("div", { class: "clusters" }, clusters.map((cluster) => clusterCard(cluster, data, again)));

function clusterCard(cluster, data, again) {
  const id = cluster.cluster_id;
  const choose = h("input", {
    type: "checkbox",
    checked: chosen.clusters.has(id),
    "aria-label": `Choose cluster ${id}`,
    onchange: () => {
      if (choose.checked && chosen.media.size) startSelection(choose);
      choose.checked ? chosen.clusters.add(id) : chosen.clusters.delete(id);
      card.classList.toggle("is-chosen", choose.checked);
      redrawVerbs(data, again);
    },
  });
  const card = h(
    "section",
    { class: `cluster ${choose.checked ? "is-chosen" : ""}`, "aria-label": `Cluster ${id}` },
    h("header", {}, choose, h("strong", {}, titleOf(cluster)), h("span", { class: "size" }, `${count(cluster.size)} items`)),
    strip(cluster.origins, cluster.size),
    h("p", { class: "quiet" }, `cluster ${id} since revision ${cluster.since} · threshold for arrivals ${cluster.threshold.toFixed(3)}`, lineage(cluster)),
    h("details", { open: chosen.from === id && chosen.media.size > 0 }, h("summary", {}, cluster.media_ids.slice(0, 3).join(", ") + (cluster.size > 3 ? ", …" : "")), mediaList(cluster.media_ids, id, data, again)),
  );
  return card;
}

/** The name that a person gave a cluster, or else its id. */
const titleOf = ({ cluster_id, name }) => name ?? `Cluster ${cluster_id}`;

function lineage(cluster) {
  const origins = [cluster.other_names.length && `also named ${cluster.other_names.join(", ")}`, cluster.merged_from.length && `merged from ${cluster.merged_from.join(", ")}`, cluster.split_from !== null && `split from ${cluster.split_from}`].filter(Boolean);
  return origins.length ? ` · ${origins.join(", ")}` : "";
}

/** Draw a strip that shows how the members joined the cluster. */
function strip(origins, size) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", `0 0 ${size} 1`);
  svg.setAttribute("preserveAspectRatio", "none");
  let x = 0;
  for (const [way, text] of Object.entries(WAYS)) {
    const n = origins[way] ?? 0;
    if (!n) continue;
    const bar = document.createElementNS(ns, "rect");
    for (const [name, value] of Object.entries({ x, y: 0, width: n, height: 1, class: `is-${way}` })) bar.setAttribute(name, value);
    const title = document.createElementNS(ns, "title");
    title.textContent = `${n} ${text}`;
    bar.append(title);
    svg.append(bar);
    x += n;
  }
  return h("div", { class: "strip" }, svg);
}

const timeOf = (item, view) => (Object.hasOwn(view.occurred_at, item) ? ` Its producer stated ${view.occurred_at[item]}.` : "");

function mediaList(media, cluster, data, again) {
  return h(
    "ul",
    { class: cluster === null ? "media is-wide" : "media" },
    media.slice(0, SHOWN).map((item) =>
      h(
        "li",
        {},
        again &&
          h("input", {
            type: "checkbox",
            checked: chosen.from === cluster && chosen.media.has(item),
            "aria-label": `Choose ${item}`,
            onchange: ({ target }) => {
              if (target.checked && (chosen.clusters.size || (chosen.media.size && chosen.from !== cluster))) startSelection(target);
              if (target.checked) chosen.from = cluster;
              target.checked ? chosen.media.add(item) : chosen.media.delete(item);
              redrawVerbs(data, again);
            },
          }),
        h("button", { type: "button", class: "plain", "aria-label": `Why is ${item} here?`, title: `Why is this item here?${timeOf(item, data.clusters)}`, onclick: () => why(data, item) }, item),
      ),
    ),
    media.length > SHOWN && h("li", { class: "quiet" }, `and ${count(media.length - SHOWN)} more: ${shell("clusters", data.id, "--json")}`),
  );
}

function historyTable(data, again) {
  const rows = data.history.entries.map((entry) => [
    entry.revision,
    entry.kind,
    when(entry.at),
    entry.by,
    Object.entries(entry.summary ?? {})
      .filter(([, value]) => value !== null && !(Array.isArray(value) && !value.length))
      .map(([name, value]) => `${name.replace(/^n_/, "").replaceAll("_", " ")} ${value}`)
      .join(", "),
    h(
      "td",
      { class: "actions" },
      data.corrections.verbs
        .filter(({ verb }) => verb === "undo" && may(data.corrections.verbs.find((one) => one.verb === verb).operation) && data.corrections.undoable.includes(entry.kind))
        .map((verb) => [h("button", { type: "button", onclick: () => correct(data, verb, { revision: entry.revision }, again) }, `${verb.button}…`), " "]),
      entry.revision !== data.clusters.revision && h("button", { type: "button", onclick: () => compare(data, entry, again) }, "Compare…"),
    ),
  ]);
  return table(["revision", "kind", "when", "by", "summary", ""], rows, { empty: "No reclusters or corrections yet." });
}

/** Ask for the remaining fields of a correction, and send it. */
async function correct(data, verb, filled, again) {
  const given = (answers, isRequired) => Object.fromEntries(verb.asks.filter(({ required }) => required === isRequired).map(({ name }) => [name, answers.get(name)?.trim()]).filter(([, value]) => value));
  const answers = await ask({
    title: `${verb.title}: ${filled.revision ?? filled.cluster_ids?.join(", ") ?? counted(filled)}${filled.cluster_id && filled.media_ids ? ` of cluster ${filled.cluster_id}` : ""}`,
    body: [h("p", {}, verb.description), filled.media_ids && h("ul", { class: "media" }, filled.media_ids.map((item) => h("li", {}, item))), verb.asks.map((one) => field(one, filled, data))],
    action: verb.button,
    cli: (values) => ({ "On the command line:": shell(verb.verb, data.id, ...words(filled), ...Object.values(given(values, true)), ...Object.entries(given(values, false)).flatMap(([name, value]) => [`--${name}`, value])) }),
  });
  if (answers) send(data, verb, { ...filled, ...given(answers, true), ...given(answers, false) }, again);
}

/** Send a correction based on the revision that is shown; the server refuses it if items were moved since. */
async function send(data, verb, body, again) {
  try {
    const accepted = await post(`clusters/${verb.verb}`, { pet_id: data.id, ...body }, { "If-Match": `"${data.clusters.revision}"` });
    if (accepted.n_arrivals) notice(`${verb.title}: ${count(accepted.n_arrivals)} ${accepted.n_arrivals === 1 ? "item" : "items"} arrived since this page was loaded.`);
    const status = await watch(accepted, verb.title);
    if (status?.state === "succeeded") {
      clearSelection();
      again();
    }
  } catch (error) {
    notice(`${verb.title}: ${error.message}`, { kind: "bad", stay: true });
    if (error.status === 412) again();
  }
}

const counted = ({ cluster_ids, cluster_id, media_ids }) => (cluster_ids ? `${count(cluster_ids.length)} ${cluster_ids.length === 1 ? "cluster" : "clusters"}` : media_ids ? manyItems(media_ids.length) : `cluster ${cluster_id}`);

/** Return the arguments of the command that makes the same correction. */
const words = ({ cluster_ids = [], cluster_id, revision, media_ids = [] }) => [...cluster_ids, ...[cluster_id, revision].filter((id) => id !== undefined), ...media_ids.flatMap((item) => ["--media", item])];

/** Return the input of a field: for an id a choice among the selected clusters, or all clusters; otherwise text. */
function field({ name, type, description, required }, { cluster_ids }, data) {
  const shown = new Map(data.clusters.clusters.map((cluster) => [cluster.cluster_id, `${titleOf(cluster)} (${count(cluster.size)} items)`]));
  const input =
    type === "id"
      ? h("select", { name }, h("option", { value: "" }, "default"), (cluster_ids ?? [...shown.keys()]).map((id) => h("option", { value: id }, shown.get(id))))
      : h("input", { name, required });
  return h("label", { class: "row" }, `${description} `, input);
}

// -- previews, comparisons and explanations ---------------------------------------------------------------------

const place = (cluster) => (cluster === null ? "noise" : String(cluster));

/** Describe what differs between two states of a pet. */
function difference(diff) {
  const facts = [
    ["items unchanged", count(diff.n_same)],
    ["items moved", count(diff.n_moved)],
    ["new noise", count(diff.n_new_noise)],
    ["no longer noise", count(diff.n_from_noise)],
    ["retired clusters", Object.entries(diff.merged).map(([from, to]) => `${from} → ${to}`).join(", ") || "none"],
    ["new clusters", [...diff.new_ids].join(", ") || "none"],
  ];
  const moved = diff.moved.slice(0, 20).map((move) => [move.media_id, place(move.from), place(move.to)]);
  return [
    h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    moved.length > 0 && table(["item", "from", "to"], moved, { narrow: true, caption: moved.length < diff.n_moved ? `${moved.length} of ${count(diff.n_moved)}` : null }),
  ];
}

async function compare(data, entry, again) {
  try {
    const diff = await get(`pets/${data.id}/history/diff?from=${entry.revision}&to=${data.clusters.revision}`);
    const restore = data.corrections.verbs.find(({ verb }) => verb === "restore");
    const answers = await ask({
      title: `Since revision ${entry.revision}`,
      body: [difference(diff), h("p", { class: "quiet" }, restore.description)],
      action: `Restore revision ${entry.revision}`,
      cli: shell("restore", data.id, entry.revision),
    });
    if (answers) send(data, restore, { revision: entry.revision }, again);
  } catch (error) {
    notice(error.message, { kind: "bad", stay: true });
  }
}

async function recluster(data, again) {
  const waiting = notice("Computing a preview of the recluster…", { stay: true });
  try {
    const job = await post("clusters/recluster", { pet_id: data.id, preview: true }, { Prefer: "respond-async" });
    const ended = await follow(job, ({ reason }) => (waiting.querySelector("span").textContent = `Computing a preview of the recluster: ${reason}`));
    waiting.remove();
    if (ended.state !== "succeeded") return notice(`No preview: ${ended.reason}`, { kind: "bad", stay: true });
    const preview = await get(`pets/${data.id}/previews/${encodeURIComponent(ended.result.token)}`);
    const { result, diff } = preview;
    const answers = await ask({
      title: `Recluster pet ${data.id}`,
      body: [h("p", {}, `${count(result.n_clusters)} clusters, ${count(result.n_noise)} noise. Constraints kept: ${result.constraints_kept} of ${result.constraints}.`), difference(diff)],
      action: diff.n_moved || diff.n_new_noise || diff.n_from_noise ? "Apply this preview" : "Apply, although nothing changes",
      cli: shell("recluster", data.id, "--apply", preview.token),
    });
    if (!answers) return;
    const done = await post("clusters/recluster", { pet_id: data.id, apply: preview.token });
    notice(`reclustered: revision ${done.revision}`, { kind: "good" });
    again();
  } catch (error) {
    waiting.remove();
    notice(error.message, { kind: "bad", stay: true });
  }
}

async function why(data, item) {
  try {
    const explanation = await get(`pets/${data.id}/media/${encodeURIComponent(item)}/why`);
    await inform({
      title: item,
      body: [
        h("p", {}, explanation.reason),
        h("dl", {}, [
          ["place", explanation.cluster_id === null ? explanation.origin : `cluster ${explanation.cluster_id}, ${explanation.origin}`],
          ["similarity", explanation.similarity === null ? "–" : `${explanation.similarity.toFixed(3)}${explanation.threshold === null ? "" : ` (threshold ${explanation.threshold.toFixed(3)})`}`],
          ["next closest", explanation.second === null ? "–" : `cluster ${explanation.second.cluster_id} at ${explanation.second.similarity.toFixed(3)}${explanation.margin === null ? "" : ` (margin ${explanation.margin.toFixed(3)})`}`],
        ].map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
        table(["nearest", "cluster", { text: "similarity", class: "number" }], explanation.nearest.map((near) => [near.media_id, near.cluster_id ?? "noise", h("td", { class: "number" }, near.similarity.toFixed(3))]), { narrow: true, empty: "No similar items." }),
        explanation.corrections.length > 0 && table(["revision", "correction", "by", "when"], explanation.corrections.map((correction) => [correction.revision, `${correction.kind}: ${correction.demand}`, correction.by, when(correction.at)])),
      ],
      cli: shell("why", data.id, item),
    });
  } catch (error) {
    notice(error.message, { kind: "bad" });
  }
}
