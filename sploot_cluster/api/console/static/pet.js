// One pet: its clusters, what people said of them, and what they may say next.

import { get, post } from "./api.js";
import { ask, command, count, h, notice, shell, table, when } from "./dom.js";
import { watch } from "./job.js";

const WAYS = { core: "found by density", arrived: "assigned on arrival", absorbed: "absorbed, low confidence", corrected: "placed by a person" };
const SHOWN = 200;

// What is chosen outlives a reload of the same pet, and nothing else.
let chosen = { pet: null, clusters: new Set(), media: new Map() };

export const pet = {
  title: ({ rest }) => (rest[0] ? `Pet ${rest[0]}` : "Pets"),
  every: null,
  async load({ rest: [id] }) {
    if (!id) return null;
    const base = `pets/${encodeURIComponent(id)}`;
    const [clusters, history] = await Promise.all([get(`${base}/clusters`), get(`${base}/history?limit=50`)]);
    if (chosen.pet !== id) chosen = { pet: id, clusters: new Set(), media: new Map() };
    return { id: Number(id), clusters, history };
  },
  draw(data, { rest }, again) {
    const id = h("input", { name: "pet", value: rest[0] ?? "", required: true, inputmode: "numeric", pattern: "[1-9][0-9]*", placeholder: "pet id", "aria-label": "Pet id" });
    const form = h("form", { class: "row", onsubmit: (event) => (event.preventDefault(), (location.hash = `#/pet/${id.value.trim()}`)) }, id, h("button", { class: "main" }, "Look"));
    if (!data) return [h("h1", {}, "Pets"), form];
    const { clusters: view } = data;
    return [
      h("h1", {}, `Pet ${data.id}`),
      form,
      h("p", { class: "quiet" }, `${count(view.n_media)} media in ${count(view.clusters.length)} clusters, ${count(view.n_noise)} noise · revision ${view.revision}`, view.model ? ` · model ${view.model} of ${view.dim} values` : ""),
      verbs(data, again),
      h("div", { class: "key" }, Object.entries(WAYS).map(([way, text]) => h("span", {}, h("span", { class: `dot is-${way}` }, "■ "), text))),
      h("h2", {}, "Clusters"),
      view.clusters.length ? h("div", { class: "clusters" }, view.clusters.map((cluster) => clusterCard(cluster, data, again))) : h("p", { class: "quiet" }, "None yet."),
      h("h2", {}, "Noise"),
      view.n_noise ? mediaList(view.noise, null, data) : h("p", { class: "quiet" }, "Every medium is in a cluster."),
      h("h2", {}, "History"),
      historyTable(data, again),
    ];
  },
};

function verbs(data, again) {
  const act = (body) => h("div", { class: "row", id: "verbs" }, body);
  const merged = [...chosen.clusters].sort((a, b) => a - b);
  const [from, media] = [...chosen.media].find(([, names]) => names.size) ?? [null, new Set()];
  return act([
    h("button", { type: "button", onclick: () => recluster(data, again) }, "Recluster…"),
    h("button", { type: "button", class: "main", disabled: merged.length < 2, onclick: () => merge(data, merged, again) }, merged.length < 2 ? "Merge: choose clusters" : `Merge ${merged.length} clusters…`),
    h("button", { type: "button", class: "main", disabled: from === null, onclick: () => split(data, from, [...media], again) }, from === null ? "Split: choose media of a cluster" : `Split ${media.size} media off cluster ${from}…`),
    (merged.length > 0 || from !== null) && h("button", { type: "button", onclick: () => ((chosen = { pet: chosen.pet, clusters: new Set(), media: new Map() }), again()) }, "Choose nothing"),
  ]);
}

function redrawVerbs(data, again) {
  document.getElementById("verbs").replaceWith(verbs(data, again));
}

function clusterCard(cluster, data, again) {
  const id = cluster.cluster_id;
  const choose = h("input", {
    type: "checkbox",
    checked: chosen.clusters.has(id),
    "aria-label": `Choose cluster ${id}`,
    onchange: () => {
      choose.checked ? chosen.clusters.add(id) : chosen.clusters.delete(id);
      card.classList.toggle("is-chosen", choose.checked);
      redrawVerbs(data, again);
    },
  });
  const card = h(
    "section",
    { class: `cluster ${choose.checked ? "is-chosen" : ""}`, "aria-label": `Cluster ${id}` },
    h("header", {}, choose, h("strong", {}, id), h("span", { class: "quiet" }, `since revision ${cluster.since}`), h("span", { class: "size" }, `${count(cluster.size)} media`)),
    strip(cluster.standings, cluster.size),
    h("p", { class: "quiet" }, `an arrival must reach ${cluster.threshold.toFixed(3)}`),
    h("details", { open: (chosen.media.get(id)?.size ?? 0) > 0 }, h("summary", {}, cluster.media_ids.slice(0, 3).join(", ") + (cluster.size > 3 ? ", …" : "")), mediaList(cluster.media_ids, id, data, again)),
  );
  return card;
}

/** How the members came here, as a strip. */
function strip(standings, size) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", `0 0 ${size} 1`);
  svg.setAttribute("preserveAspectRatio", "none");
  let x = 0;
  for (const [way, text] of Object.entries(WAYS)) {
    const n = standings[way] ?? 0;
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

function mediaList(media, cluster, data, again) {
  const names = chosen.media.get(cluster) ?? new Set();
  return h(
    "ul",
    { class: "media" },
    media.slice(0, SHOWN).map((medium) =>
      h(
        "li",
        {},
        cluster !== null &&
          h("input", {
            type: "checkbox",
            checked: names.has(medium),
            "aria-label": `Choose ${medium}`,
            onchange: ({ target }) => {
              // a split is of one cluster
              if (!chosen.media.has(cluster)) chosen.media = new Map([[cluster, names]]);
              target.checked ? names.add(medium) : names.delete(medium);
              redrawVerbs(data, again);
            },
          }),
        h("button", { type: "button", class: "plain", title: "Why is it here?", onclick: () => why(data, medium) }, medium),
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
    UNDOABLE.has(entry.kind) ? h("button", { type: "button", onclick: () => undo(data, entry, again) }, "Undo…") : "",
  ]);
  return table(["revision", "kind", "when", "by", "what", ""], rows, { empty: "No recluster and no correction yet." });
}

const UNDOABLE = new Set(["merge", "split", "undo", "exclude", "dismiss"]);

async function act(again, what, path, body) {
  try {
    const status = await watch(await post(path, body), what);
    if (status?.state === "succeeded") {
      chosen = { pet: chosen.pet, clusters: new Set(), media: new Map() };
      again();
    }
  } catch (error) {
    notice(`${what}: ${error.message}`, { kind: "bad", stay: true });
  }
}

async function merge(data, ids, again) {
  const sizes = new Map(data.clusters.clusters.map((cluster) => [cluster.cluster_id, cluster.size]));
  const known = ids.filter((id) => sizes.has(id));
  const into = h("select", { name: "into" }, h("option", { value: "" }, "the largest"), known.map((id) => h("option", { value: id }, `${id} (${count(sizes.get(id))} media)`)));
  const said = await ask({
    title: `Merge clusters ${known.join(", ")}`,
    body: [h("p", {}, "Their media stay together for ever, whatever a machine computes later. It can be undone."), h("label", { class: "row" }, "The one that goes on: ", into)],
    action: "Merge",
    cli: shell("merge", data.id, ...known),
  });
  if (said) act(again, "merge", "clusters/merge", { pet_id: data.id, cluster_ids: known, ...(said.get("into") ? { into: Number(said.get("into")) } : {}) });
}

async function split(data, cluster, media, again) {
  const said = await ask({
    title: `Split ${media.length} media off cluster ${cluster}`,
    body: [h("p", {}, "They become a cluster of their own and stay apart from the rest for ever. It can be undone."), h("ul", { class: "media" }, media.map((medium) => h("li", {}, medium)))],
    action: "Split",
    cli: shell("split", data.id, cluster, ...media.flatMap((medium) => ["--media", medium])),
  });
  if (said) act(again, "split", "clusters/split", { pet_id: data.id, cluster_id: cluster, media_ids: media });
}

async function undo(data, entry, again) {
  const said = await ask({
    title: `Undo the ${entry.kind} of revision ${entry.revision}`,
    body: h("p", {}, `${entry.by} said it. An undo can be undone, too.`),
    action: "Undo",
    cli: shell("undo", data.id, entry.revision),
  });
  if (said) act(again, "undo", "clusters/undo", { pet_id: data.id, revision: entry.revision });
}

async function recluster(data, again) {
  const said = await ask({ title: `Recluster pet ${data.id}`, body: h("p", {}, "Corrections and ids are kept."), action: "Recluster", cli: shell("recluster", data.id) });
  if (said) act(again, "recluster", "clusters/recluster", { pet_id: data.id });
}

function why() {}
