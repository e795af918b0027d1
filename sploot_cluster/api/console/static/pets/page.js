// The page of one pet: its tabs, the corrections that the selection allows, and the unfinished corrections.

import { may } from "../api.js";
import { ask, count, fill, go, h, retitle } from "../dom.js";
import { named } from "../names.js";
import { redraw } from "../redraw.js";
import { albumsView } from "./albums.js";
import { Desk, albums, items, same, titleOf } from "./desk.js";
import { itemsView } from "./items.js";
import { VERB_KEYS, onKey, showKeys } from "./keys.js";
import { mapView } from "./map.js";
import { pastView } from "./past.js";
import { regroupView } from "./regroup.js";
import { reviewView } from "./review.js";
import { coverOf } from "./tiles.js";

const TABS = [
  ["review", "Review"],
  ["", "Albums"],
  ["loose", "Loose"],
  ["map", "Map"],
  ["history", "History"],
];

const VIEWS = {
  "": albumsView,
  album: (desk, id) => itemsView(desk, { album: id }),
  loose: (desk) => itemsView(desk),
  dismissed: (desk) => itemsView(desk, { dismissed: true }),
  map: mapView,
  history: pastView,
  review: reviewView,
  recluster: regroupView,
};

// verb -> the state that it changes, and the value that the state must have before
const TURNS = { hide: ["is_hidden", false], show: ["is_hidden", true], lock: ["is_locked", false], unlock: ["is_locked", true] };

export class PetPage {
  constructor(pet) {
    this.pet = pet;
    this.desk = new Desk(pet);
    this.ended = new AbortController();
    this.head = h("header", { class: "pet-head" });
    this.tabs = h("nav", { class: "tabs", "aria-label": "This pet" });
    this.news = h("div", { class: "news", role: "status" });
    this.body = h("div", { class: "pet-body" });
    this.bar = h("div", { class: "verbs", role: "toolbar", "aria-label": "Corrections" });
    this.element = h("div", { class: "pet" }, this.head, this.tabs, this.news, this.body, this.bar);
    this.desk.addEventListener("change", () => this.update());
    this.desk.watch(this.ended.signal, () => this.element.isConnected);
    onKey((key, event) => this.#key(key, event), this.ended.signal);
  }

  /** Load the pet for the first time, or again if it has changed. */
  async load() {
    await this.desk.refresh();
  }

  /** Show a part of the pet, such as an album. */
  open(name, id) {
    const key = `${name}/${id ?? ""}`;
    if (this.place !== key) {
      this.view?.destroy();
      this.place = key;
      this.name = name;
      const make = Object.hasOwn(VIEWS, name) ? VIEWS[name] : null;
      this.view = make ? make(this.desk, id) : { element: h("p", { class: "banner is-critical" }, `A pet has no page “${name}”.`), update() {}, destroy() {} };
      this.view.selection?.addEventListener("change", () => this.#drawBar());
      fill(this.body, this.view.element);
      this.view.load?.();
    }
    this.update();
  }

  /** The name of the pet, or else its id. */
  get title() {
    return this.desk.base ? this.desk.view.name ?? `Pet ${this.pet}` : `Pet ${this.pet}`;
  }

  destroy() {
    this.ended.abort();
    this.view?.destroy();
  }

  update() {
    if (!this.desk.base || !this.view) return;
    this.#drawHead();
    this.#drawNews();
    this.view.update();
    this.#drawBar();
  }

  #drawHead() {
    const { desk } = this;
    const { view } = desk;
    named(this.pet, view.name);
    if (this.element.isConnected) retitle(this.title);
    draw(
      this.head,
      h("div", {}, h("div", { class: "title" }, h("h1", {}, h("a", { href: "#/pet", class: "quiet" }, "Pets"), " / ", view.name ?? `Pet ${this.pet}`), desk.may("name_pet") && view.n_media > 0 && h("button", { type: "button", class: "quiet-button", data: { key: "name" }, title: "Name the pet", onclick: () => this.#namePet() }, view.name ? "Rename" : "Name")), h("p", { class: "quiet" }, `${view.name ? `Pet ${this.pet} · ` : ""}${items(view.n_media)} in ${albums(desk.albums.length)}, ${count(view.noise.length)} loose${view.dismissed.length ? `, ${count(view.dismissed.length)} dismissed` : ""} · revision ${desk.seen}${view.model ? ` · ${view.model}` : ""}`)),
      h("span", { class: "spring" }),
      this.#progress(),
      desk.canUndo && h("button", { type: "button", data: { key: "undo" }, onclick: () => desk.undo(), title: "Undo the last correction of this page" }, "Undo ", h("kbd", {}, "Z")),
      may("recluster") && view.n_media > 0 && h("a", { class: "button", data: { key: "recluster" }, href: `#/pet/${this.pet}/recluster` }, "Recluster…"),
      h("button", { type: "button", class: "quiet-button", data: { key: "keys" }, onclick: showKeys, "aria-label": "Keys", title: "Keys" }, h("kbd", {}, "?")),
    );
    draw(
      this.tabs,
      TABS.map(([name, title], at) => {
        const isHere = this.name === name || (name === "" && this.name === "album") || (name === "loose" && this.name === "dismissed");
        const n = name === "" ? desk.albums.length : name === "loose" ? view.noise.length : null;
        return h("a", { href: `#/pet/${this.pet}${name ? `/${name}` : ""}`, "aria-current": isHere ? "page" : null, title: `Key ${at + 1}` }, title, n !== null && h("span", { class: "count" }, count(n)));
      }),
    );
  }

  /** The number of unfinished corrections, shown until it is zero. */
  #progress() {
    const open = this.desk.open;
    if (!open.length) return null;
    const [first] = open;
    const reason = first.status && first.status.state !== "running" ? first.status.reason : "";
    return h("span", { class: "working", role: "status", title: first.what }, `${count(open.length)} in progress`, reason && h("small", {}, ` ${reason}`));
  }

  #drawNews() {
    const { desk } = this;
    const refresh = (text) => h("p", { class: "banner" }, text, " ", h("button", { type: "button", class: "main", onclick: () => desk.load() }, "Show the current state"));
    draw(
      this.news,
      desk.isStale && !desk.open.length && refresh("Someone has changed this pet since the page was loaded."),
      desk.nArrived > 0 && refresh(`${count(desk.nArrived)} newer ${desk.nArrived === 1 ? "revision" : "revisions"}: items arrived, or an album was named.`),
      desk.others.length > 0 && h("p", { class: "banner" }, h("span", {}, h("span", { class: "working" }), "Not shown yet: ", desk.others.slice(0, 3).map((job, at) => [at > 0 && ", ", h("a", { href: `#/job/${encodeURIComponent(job.job_id)}` }, job.actor.replaceAll("_", " ")), ` (${job.state})`]), desk.others.length > 3 && ` and ${count(desk.others.length - 3)} more`)),
    );
  }

  // -- corrections ---------------------------------------------------------------------------------------------------

  /** The fields that a verb would get from the current selection, or null if the selection does not fit it. */
  #given(verb) {
    const chosen = this.view.chosen?.();
    const album = this.view.album?.();
    if (verb.verb === "cover") return album && chosen?.media_ids?.length === 1 ? { cluster_id: album.cluster_id, media_id: chosen.media_ids[0] } : null;
    switch (verb.takes) {
      case "several clusters":
        return chosen?.cluster_ids?.length > 1 ? chosen : null;
      case "clusters":
        return chosen?.cluster_ids ?? null ? chosen : album && !chosen ? { cluster_ids: [album.cluster_id] } : null;
      case "cluster":
        return chosen?.cluster_ids?.length === 1 ? { cluster_id: chosen.cluster_ids[0] } : album && !chosen ? { cluster_id: album.cluster_id } : null;
      case "items of one cluster":
        return chosen?.media_ids && chosen.cluster_id !== undefined ? { cluster_id: chosen.cluster_id, media_ids: chosen.media_ids } : null;
      case "items":
        return chosen?.media_ids ? { media_ids: chosen.media_ids } : null;
      default:
        return null;
    }
  }

  #verbs() {
    const are = (state, ids) => ids.every((id) => this.desk.view.clusters.find((album) => same(album.cluster_id, id))?.[state]);
    // of two verbs that reverse each other, offer only the one that would change something
    const isOffered = ({ verb: { verb }, given }) => !(verb in TURNS) || are(TURNS[verb][0], given.cluster_ids) === TURNS[verb][1];
    return this.desk.verbs.verbs
      .filter((verb) => may(verb.operation))
      .map((verb) => ({ verb, given: this.#given(verb) }))
      .filter(({ given }) => given)
      .filter(isOffered);
  }

  #drawBar() {
    const { selection } = this.view;
    const offered = this.desk.base ? this.#verbs() : [];
    const n = selection?.size ?? 0;
    this.bar.hidden = !offered.length;
    this.bar.classList.toggle("is-choosing", n > 0);
    draw(
      this.bar,
      n > 0 && h("span", { class: "chosen" }, h("strong", {}, count(n)), " selected"),
      offered.map(({ verb, given }) => h("button", { type: "button", data: { verb: verb.verb, key: verb.verb }, title: verb.description, onclick: () => this.#correct(verb, given) }, verb.button, VERB_KEYS[verb.verb] && h("kbd", {}, VERB_KEYS[verb.verb].toUpperCase()))),
      n > 0 && h("button", { type: "button", class: "quiet-button", data: { key: "clear" }, onclick: () => selection.clear() }, "Clear"),
    );
  }

  async #correct(verb, given) {
    const body = await this.#asked(verb, given);
    if (!body) return;
    this.view.selection?.clear();
    this.desk.act(verb.verb, body, { what: sentence(this.desk, verb, body) });
  }

  async #namePet() {
    const before = this.desk.view.name ?? "";
    const field = h("input", { name: "name", value: before, maxlength: 100, autocomplete: "off", autofocus: true });
    const answers = await ask({ title: `Name pet ${this.pet}`, body: [h("label", { class: "row" }, "The name of the pet ", field), before && h("p", { class: "quiet" }, "An empty field removes the name.")], action: "Name" });
    const name = answers?.get("name").trim();
    if (answers && name !== before) this.desk.act("name_pet", { name }, { what: name ? `Name the pet “${name}”` : "Remove the pet's name" });
  }

  /** Ask for a name or an album if the verb needs one. All else is done without asking, because it can be undone. */
  async #asked(verb, given) {
    if (verb.verb === "place") return placed(this.desk, given, this.view.album?.());
    const needed = verb.asks.filter(({ name, required }) => required && given[name] === undefined);
    if (!needed.length) return given;
    const album = given.cluster_id === undefined ? null : this.desk.album(given.cluster_id);
    const answers = await ask({
      title: `${verb.title}${album ? `: ${titleOf(album)}` : ""}`,
      body: [album && coverOf(this.pet, album, 160), needed.map(({ name, description }) => h("label", { class: "row" }, `${description} `, h("input", { name, required: true, value: name === "name" ? (album?.name ?? "") : "", autocomplete: "off" })))],
      action: verb.button,
    });
    return answers && { ...given, ...Object.fromEntries(needed.map(({ name }) => [name, answers.get(name).trim()])) };
  }

  // -- keys ------------------------------------------------------------------------------------------------------------

  #key(key, event) {
    if (!this.element.isConnected || !this.desk.base) return false;
    const own = this.view.keys?.[key];
    if (own) return own(), true;
    if (key === "?") return showKeys(), true;
    if (key === "z" && !event.shiftKey) return this.desk.undo(), true;
    if (key === "Escape") return this.#escape();
    if (key === "f") {
      const field = this.element.querySelector("input[type=search]:not([hidden])");
      return Boolean(field) && (field.focus(), true);
    }
    if (/^[1-5]$/.test(key)) return go(`#/pet/${this.pet}${TABS[key - 1][0] ? `/${TABS[key - 1][0]}` : ""}`), true;
    if (key === "a" && this.view.grid) return this.view.grid.choose(), true;
    if (key.startsWith("Arrow") && (this.view.grid || this.name === "map") && document.activeElement !== this.view.focus) return this.view.focus.focus({ preventScroll: true }), true;
    const offered = this.#verbs().find(({ verb }) => VERB_KEYS[verb.verb] === key);
    if (offered) return this.#correct(offered.verb, offered.given), true;
    return key === VERB_KEYS.name && this.desk.may("name_pet") && (this.#namePet(), true);
  }

  #escape() {
    if (this.view.selection?.size) return this.view.selection.clear(), true;
    if (this.name !== "") return go(`#/pet/${this.pet}`), true;
    return false;
  }
}

/** Draw a part of the page again; what has the focus keeps it. */
const draw = (element, ...children) => redraw(element, children.flat(3).filter(Boolean));

/** Ask for the album to place items in. */
async function placed(desk, given, from) {
  const others = desk.albums.filter((album) => !from || !same(album.cluster_id, from.cluster_id));
  const radio = (value, ...content) => h("label", { class: "pick" }, h("input", { type: "radio", name: "into", value, required: true }), content);
  const find = h("input", { type: "search", placeholder: "Find an album", "aria-label": "Find an album to place in", oninput: () => list.querySelectorAll("label").forEach((label) => (label.hidden = !label.textContent.toLowerCase().includes(find.value.trim().toLowerCase()))) });
  const list = h("div", { class: "picks" }, radio("", h("span", { class: "cover is-new" }, "+"), h("span", {}, "New album")), others.slice(0, 500).map((album) => radio(String(album.cluster_id), coverOf(desk.pet, album, 72), h("span", {}, titleOf(album)))));
  const answers = await ask({ title: `Place ${items(given.media_ids.length)}`, body: [others.length > 12 && find, list], action: "Place" });
  if (!answers) return null;
  const into = others.find((album) => String(album.cluster_id) === answers.get("into"))?.cluster_id;
  return into === undefined ? given : { ...given, into };
}

function sentence(desk, verb, body) {
  const named = (id) => {
    const album = desk.album(id);
    return album ? titleOf(album) : `album ${id}`;
  };
  const parts = [verb.button];
  if (body.cluster_ids) parts.push(body.cluster_ids.length > 3 ? albums(body.cluster_ids.length) : body.cluster_ids.map(named).join(", "));
  if (body.media_ids) parts.push(items(body.media_ids.length));
  if (body.cluster_id !== undefined && !body.media_ids) parts.push(named(body.cluster_id));
  if (body.into !== undefined) parts.push(`in ${named(body.into)}`);
  if (body.name) parts.push(`“${body.name}”`);
  return parts.join(" ");
}
