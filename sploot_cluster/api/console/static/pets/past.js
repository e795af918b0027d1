// The past of a pet: a slider through its revisions shows it as it was. Two revisions can be compared, and any revision
// restored.

import { get } from "../api.js";
import { count, fill, h, notice, table, when } from "../dom.js";
import { movesView } from "./moves.js";
import { cover } from "./tiles.js";
import { titleOf, undone } from "./desk.js";

const PAUSE_MS = 120;

export function pastView(desk) {
  const slider = h("input", { type: "range", min: 0, step: 1, "aria-label": "Revision", oninput: () => slide() });
  const label = h("output", { class: "past-label" });
  const then = h("div", { class: "then" });
  const list = h("div", {});
  const buttons = h("div", { class: "row" });
  const element = h("div", {}, h("div", { class: "past" }, slider, label, buttons), then, h("h2", {}, "All changes"), list);
  let states = [];
  let timer = null;
  let of = null;

  function update() {
    if (of === desk.history) return;
    of = desk.history;
    // the state before the oldest known change is not listed, because it may no longer be stored
    states = [...desk.history].reverse().map((entry) => ({ revision: entry.revision, entry }));
    slider.max = Math.max(0, states.length - 1);
    slider.value = slider.max;
    slider.disabled = states.length < 2;
    fill(list, historyTable(desk));
    show();
  }

  function slide() {
    const { revision, entry } = states[slider.value];
    fill(label, h("strong", {}, `Revision ${revision}`), ` · ${kindOf(entry)} by ${entry.by} · `, when(entry.at));
    clearTimeout(timer);
    timer = setTimeout(show, PAUSE_MS);
  }

  async function show() {
    if (!states.length) return fill(then, h("p", { class: "quiet" }, "No reclusters or corrections yet."));
    slide.done = states[slider.value];
    const { revision, entry } = slide.done;
    fill(label, h("strong", {}, `Revision ${revision}`), ` · ${kindOf(entry)} by ${entry.by} · `, when(entry.at));
    try {
      const found = await get(`pets/${desk.pet}/history/${revision}`);
      if (states[slider.value]?.revision !== revision) return;
      const albums = Object.entries(found.clusters).sort(([, a], [, b]) => b.length - a.length);
      fill(
        then,
        h("p", { class: "quiet" }, `${count(albums.length)} albums, ${count(found.noise.length)} loose${found.dismissed.length ? `, ${count(found.dismissed.length)} dismissed` : ""}`),
        h("div", { class: "then-albums" }, albums.slice(0, 60).map(([id, media]) => h("figure", {}, cover(desk.pet, media, 110), h("figcaption", {}, h("strong", {}, nameOf(desk, id)), " ", h("span", { class: "quiet" }, count(media.length)))))),
        albums.length > 60 && h("p", { class: "quiet" }, `and ${count(albums.length - 60)} more`),
      );
      const isNow = revision === desk.history[0]?.revision;
      fill(
        buttons,
        h("button", { type: "button", disabled: isNow, onclick: () => compare(revision) }, "Compare with now"),
        desk.may("restore") && h("button", { type: "button", disabled: isNow, onclick: () => restore(desk, revision) }, `Restore revision ${revision}`),
      );
    } catch (error) {
      fill(then, h("p", { class: "banner is-warning" }, error.message));
      fill(buttons);
    }
  }

  async function compare(revision) {
    try {
      const diff = await get(`pets/${desk.pet}/history/diff?from=${revision}&to=${desk.view.revision}`);
      fill(then, h("h2", {}, `Since revision ${revision}`), movesView(desk, diff));
    } catch (error) {
      notice(error.message, { kind: "bad" });
    }
  }

  return { element, update, focus: slider, destroy: () => clearTimeout(timer) };
}

const kindOf = (entry) => entry.kind.replaceAll("_", " ");

const restore = (desk, revision) => desk.act("restore", { revision }, { what: `Restore revision ${revision}` });

const nameOf = (desk, id) => {
  const album = desk.view.clusters.find((one) => String(one.cluster_id) === id);
  return album ? titleOf(album) : `Album ${id}`;
};

function historyTable(desk) {
  const gone = undone(desk.history);
  const rows = desk.history.map((entry) => {
    const isUndone = gone.has(String(entry.revision));
    const canUndo = desk.may("undo") && desk.verbs.undoable.includes(entry.kind);
    return [
      entry.revision,
      h("td", { class: "whole" }, kindOf(entry), isUndone && [" ", h("span", { class: "badge" }, "undone")]),
      when(entry.at),
      entry.by,
      summary(entry),
      h("td", { class: "actions" }, canUndo && !isUndone && h("button", { type: "button", onclick: (event) => ((event.currentTarget.disabled = true), desk.act("undo", { revision: entry.revision }, { what: `Undo revision ${entry.revision} (${kindOf(entry)})` })) }, "Undo")),
    ];
  });
  return table(["revision", "kind", "when", "by", "summary", ""], rows, { empty: "No reclusters or corrections yet." });
}

// the labels on this page of the counts in the history
const WORDS = { n_media: "items", n_clusters: "albums", n_noise: "loose" };

const summary = (entry) =>
  Object.entries(entry.summary ?? {})
    .filter(([, value]) => value !== null && !(Array.isArray(value) && !value.length))
    .map(([name, value]) => `${WORDS[name] ?? name.replace(/^n_/, "").replaceAll("_", " ")} ${Array.isArray(value) ? value.join(", ") : value}`)
    .join(", ");

