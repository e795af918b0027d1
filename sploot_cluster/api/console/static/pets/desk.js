// A pet as its labeller sees it: the server's data, with unfinished corrections already applied to it.
//
// Corrections are sent one after the other, each with the revision that the labeller saw. So no correction is applied
// to a state that the labeller has not seen: if another user was faster, the correction is refused, those queued
// after it are not sent, and the page shows the pet as it is now.

import { asset, follow, get, may, post, Refused } from "../api.js";
import { count, notice, shell } from "../dom.js";

const POLL_MS = 5_000;

export const same = (a, b) => String(a) === String(b);

/** The name that a user gave a cluster, or else its id. */
export const titleOf = ({ cluster_id: id, name }) => name ?? (String(id).startsWith("new") ? "New album" : `Album ${id}`);

export const items = (n) => `${count(n)} ${n === 1 ? "item" : "items"}`;
export const albums = (n) => `${count(n)} ${n === 1 ? "album" : "albums"}`;

export class Desk extends EventTarget {
  constructor(pet) {
    super();
    Object.assign(this, { pet, base: null, history: [], acts: [], log: [], others: [], nArrived: 0, isStale: false, seen: 0, newIds: new Map() });
  }

  /** Load the pet again if it has changed; do nothing while corrections are unfinished, because the pet is loaded when
   *  they end. */
  async refresh() {
    if (this.acts.some(isOpen)) return;
    if (this.base) await this.look();
    if (!this.base || this.isStale || this.nArrived || this.acts.length) await this.load();
  }

  async load() {
    if (this.acts.some(isOpen)) return;
    this.verbs ??= await asset("corrections.json");
    const base = `pets/${this.pet}`;
    const [view, history] = await Promise.all([get(`${base}/clusters`), get(`${base}/history?limit=200`)]);
    if (this.acts.some(isOpen)) return;
    this.acts = [];
    this.base = view;
    this.history = history.entries;
    this.seen = view.revision;
    [this.isStale, this.nArrived] = [false, 0];
    this.#changed();
  }

  /** The pet to show: as it is after all corrections made on this page. */
  get view() {
    if (this.shown) return this.shown;
    let view = this.base;
    for (const act of this.acts) {
      if (act.state === "failed") continue;
      if (act.target) view = act.target.before ?? view;
      else {
        act.before = view;
        view = PREDICT[act.verb.verb]?.(view, act.body, act.newId) ?? view;
      }
    }
    return (this.shown = view);
  }

  /** The albums to show; `hidden` has those that a user hid. */
  get albums() {
    return this.view.clusters.filter((cluster) => !cluster.is_hidden);
  }

  get hidden() {
    return this.view.clusters.filter((cluster) => cluster.is_hidden);
  }

  album(id) {
    const now = this.newIds.get(String(id)) ?? id;
    const led = this.view.aliases[now] ?? now;
    return this.view.clusters.find((cluster) => same(cluster.cluster_id, led));
  }

  verb(name) {
    return this.verbs.verbs.find(({ verb }) => verb === name);
  }

  may(name) {
    const verb = this.verb(name);
    return Boolean(verb) && may(verb.operation);
  }

  /** Make a correction: show its effect immediately, and send it after all earlier corrections. Resolves to the
   *  correction when it has ended. */
  act(name, body, { what } = {}) {
    const verb = this.verb(name);
    const act = { verb, body, what: what ?? verb.title, state: "waiting", at: Date.now(), newId: `new-${this.log.length + 1}` };
    act.ended = new Promise((resolve) => (act.end = resolve));
    this.#push(act);
    return act.ended;
  }

  get canUndo() {
    return this.may("undo") && this.#undoable() !== undefined;
  }

  /** Undo the last correction of this page; drop it if it was not sent yet. */
  undo() {
    const target = this.#undoable();
    if (!target) return notice("Nothing to undo: no correction was made on this page. The history can undo older ones.");
    target.isUndone = true;
    if (target.state === "waiting") {
      target.state = "dropped";
      this.acts = this.acts.filter((act) => act !== target);
      target.end(target);
      this.#changed();
      return notice(`Not sent: ${target.what}`);
    }
    const act = { verb: this.verb("undo"), body: {}, target, what: `Undo: ${target.what}`, state: "waiting", at: Date.now() };
    act.ended = new Promise((resolve) => (act.end = resolve));
    this.#push(act);
    return act.ended;
  }

  /** The number of corrections in force, and how many of these no newer correction overrides. */
  corrections() {
    const gone = undone(this.history);
    const done = this.history.filter((entry) => this.verbs.undoable.includes(entry.kind) && entry.kind !== "undo" && !gone.has(String(entry.revision))).length;
    const since = this.acts.filter((act) => act.state === "done" && act.revision > this.base.revision && !act.isUndone);
    const total = done + since.filter((act) => !act.target).length - since.filter((act) => act.target && act.target.revision <= this.base.revision).length;
    const overridden = new Set(this.log.flatMap((act) => (act.isUndone ? [] : (act.overridden ?? []))));
    return { total, kept: Math.max(0, total - overridden.size) };
  }

  get open() {
    return this.acts.filter(isOpen);
  }

  /** Poll for changes of the pet and for waiting jobs, which the page shows, until the signal aborts. */
  async watch(signal, isShown) {
    while (!signal.aborted) {
      // if the server does not respond, the page stays as it is, and the header reports the problem
      if (this.base && isShown() && !document.hidden) await this.look().catch(() => {});
      await new Promise((resolve) => setTimeout(resolve, this.base ? POLL_MS : 200));
    }
  }

  async look() {
    const work = await get(`pets/${this.pet}/jobs`);
    const own = new Set(this.log.map((act) => act.jobId));
    const before = JSON.stringify([this.others.map((job) => [job.job_id, job.state]), this.isStale, this.nArrived]);
    // a preview changes nothing, and a recluster that is planned for later is not awaited
    this.others = work.jobs.filter((job) => !own.has(job.job_id) && job.actor !== "preview_recluster" && job.state !== "delayed");
    if (!this.open.length) {
      this.isStale = work.moved_at > this.seen || work.revision < this.base.revision;
      this.nArrived = this.isStale ? 0 : Math.max(0, work.revision - this.seen);
    }
    if (before !== JSON.stringify([this.others.map((job) => [job.job_id, job.state]), this.isStale, this.nArrived])) this.#changed();
  }

  #undoable() {
    return this.log.findLast((act) => !act.target && !act.isUndone && act.state !== "failed" && act.state !== "dropped");
  }

  #push(act) {
    this.acts.push(act);
    this.log.push(act);
    this.#changed();
    this.#drain();
  }

  async #drain() {
    if (this.isDraining) return;
    this.isDraining = true;
    try {
      for (let act; (act = this.acts.find(({ state }) => state === "waiting")); ) {
        await this.#send(act);
        if (act.state === "failed") this.#dropRest(act);
        act.end(act);
        this.#changed();
      }
    } finally {
      this.isDraining = false;
    }
    await this.load().catch((error) => notice(error.message, { kind: "bad" }));
  }

  async #send(act) {
    act.state = "sent";
    this.#changed();
    try {
      const body = act.target ? { revision: act.target.revision } : this.#resolved(act.body);
      act.command = commandOf(this.pet, act.verb, body);
      if (act.target && act.target.state === "failed") return void (act.state = "done");
      const accepted = await post(`clusters/${act.verb.verb}`, { pet_id: this.pet, ...body }, { "If-Match": `"${this.seen}"` });
      act.jobId = accepted.job_id;
      const ended = await follow(accepted, (status) => {
        act.status = status;
        this.#changed();
      });
      if (ended.state !== "succeeded") throw new Refused(409, { detail: ended.reason });
      act.state = "done";
      Object.assign(act, { revision: ended.result.revision, nMoved: ended.result.n_moved ?? 0, overridden: ended.result.overridden ?? [] });
      const nAlso = ended.result.n_also_moved ?? 0;
      if (nAlso) notice(`${act.what}: ${items(nAlso)} that it does not name moved too, because older corrections apply differently now.`, { stay: true });
      if (ended.result.cluster && act.newId) this.newIds.set(act.newId, ended.result.cluster);
      if (ended.result.revision > this.seen) this.seen = ended.result.revision;
    } catch (error) {
      act.state = "failed";
      act.reason = error.message;
      if (act.target) act.target.isUndone = false;
      if (!(error instanceof Refused)) console.warn(error.message);
      notice(`${act.what}: ${error.message}`, { kind: "bad", stay: true });
    }
  }

  #dropRest(failed) {
    const rest = this.acts.filter(({ state }) => state === "waiting");
    for (const act of rest) {
      Object.assign(act, { state: "failed", reason: `not sent, because this was refused before it: ${failed.what}` });
      act.end(act);
    }
    if (rest.length) notice(`${count(rest.length)} later ${rest.length === 1 ? "correction was" : "corrections were"} not sent: look at the pet again first.`, { kind: "bad", stay: true });
  }

  /** Replace the temporary ids of clusters that did not exist yet when a correction was made. */
  #resolved(body) {
    const id = (value) => (typeof value === "string" && value.startsWith("new-") ? this.newIds.get(value) : value);
    return Object.fromEntries(Object.entries(body).map(([name, value]) => [name, name === "cluster_ids" ? value.map(id) : name === "cluster_id" || name === "into" ? id(value) : value]));
  }

  #changed() {
    this.shown = null;
    this.dispatchEvent(new Event("change"));
  }
}

const isOpen = ({ state }) => state === "waiting" || state === "sent";

/** Return the command that makes the same correction. */
function commandOf(pet, verb, body) {
  const words = Object.entries(body).flatMap(([name, value]) => {
    if (name === "media_ids") return value.flatMap((item) => ["--media", item]);
    if (name === "cluster_ids") return value;
    return verb.asks.some((asked) => asked.name === name && !asked.required) || name === "suggestion" ? [`--${name}`, value] : [value];
  });
  return shell(verb.verb, pet, ...words);
}

/** The revisions that are undone. `history` is newest first, because an undo may be undone itself. */
export function undone(history) {
  const gone = new Set();
  for (const entry of history) if (entry.kind === "undo" && !gone.has(String(entry.revision))) gone.add(String(entry.summary.undone));
  return gone;
}

// -- the predicted effect of a correction, shown until the server has applied it -----------------------------------------

const withoutItems = (list, gone) => list.filter((item) => !gone.has(item));

/** Remove items from wherever they are. Albums that become empty are removed. */
function taken(view, media) {
  const gone = new Set(media);
  const clusters = view.clusters.map((cluster) => {
    const left = withoutItems(cluster.media_ids, gone);
    return left.length === cluster.media_ids.length ? cluster : { ...cluster, media_ids: left, size: left.length, cover: gone.has(cluster.cover) ? left[0] : cluster.cover };
  });
  return { ...view, clusters: clusters.filter((cluster) => cluster.size), noise: withoutItems(view.noise, gone), dismissed: withoutItems(view.dismissed, gone) };
}

const counted = (view) => ({ ...view, n_noise: view.noise.length });

const change = (view, ids, by) => ({ ...view, clusters: view.clusters.map((cluster) => (ids.some((id) => same(id, cluster.cluster_id)) ? by(cluster) : cluster)) });

const fresh = (id, media_ids) => ({ cluster_id: id, name: null, other_names: [], cover: media_ids[0], is_hidden: false, is_locked: false, size: media_ids.length, media_ids, origins: {}, merged_from: [], split_from: null });

const PREDICT = {
  merge(view, { cluster_ids: ids, into }) {
    const merged = view.clusters.filter((cluster) => ids.some((id) => same(id, cluster.cluster_id)));
    if (merged.length < 2) return view;
    const kept = merged.find((cluster) => same(cluster.cluster_id, into)) ?? merged.reduce((most, one) => (one.size > most.size ? one : most));
    const others = merged.filter((cluster) => cluster !== kept);
    const media_ids = [kept, ...others].flatMap((cluster) => cluster.media_ids);
    const whole = { ...kept, name: kept.name ?? others.find((one) => one.name)?.name ?? null, media_ids, size: media_ids.length };
    const aliases = { ...view.aliases, ...Object.fromEntries(others.map((one) => [one.cluster_id, kept.cluster_id])) };
    return { ...view, aliases, clusters: view.clusters.filter((cluster) => !others.includes(cluster)).map((cluster) => (cluster === kept ? whole : cluster)) };
  },
  split(view, { media_ids: media }, newId) {
    const left = taken(view, media);
    return counted({ ...left, clusters: [...left.clusters, fresh(newId, media)] });
  },
  place(view, { media_ids: media, into }, newId) {
    const left = taken(view, media);
    if (into === undefined || into === null) return counted({ ...left, clusters: [...left.clusters, fresh(newId, media)] });
    return counted(change(left, [into], (cluster) => ({ ...cluster, media_ids: [...media, ...cluster.media_ids], size: cluster.size + media.length })));
  },
  exclude(view, { media_ids: media }) {
    const left = taken(view, media);
    return counted({ ...left, noise: [...media, ...left.noise] });
  },
  dismiss(view, { media_ids: media }) {
    const left = taken(view, media);
    return counted({ ...left, dismissed: [...media, ...left.dismissed] });
  },
  name_pet: (view, { name }) => ({ ...view, name: name || null }),
  name: (view, { cluster_id: id, name }) => change(view, [id], (cluster) => ({ ...cluster, name })),
  hide: (view, { cluster_ids: ids }) => change(view, ids, (cluster) => ({ ...cluster, is_hidden: true })),
  show: (view, { cluster_ids: ids }) => change(view, ids, (cluster) => ({ ...cluster, is_hidden: false })),
  lock: (view, { cluster_ids: ids }) => change(view, ids, (cluster) => ({ ...cluster, is_locked: true })),
  unlock: (view, { cluster_ids: ids }) => change(view, ids, (cluster) => ({ ...cluster, is_locked: false })),
  cover: (view, { cluster_id: id, media_id: cover }) => change(view, [id], (cluster) => ({ ...cluster, cover, is_cover_chosen: true })),
};
