// The review lane: one question at a time, answered by one key or a thumb. Answers are corrections like all others.

import { get } from "../api.js";
import { count, fill, h } from "../dom.js";
import { picture } from "./pictures.js";
import { items, titleOf } from "./desk.js";

const BATCH = 20;
const SHOWN = 6;

// Kind of question -> the answer that means “same subject”; the other answer means the opposite.
const SAME = { same_subject: "yes", stranger: "no", two_subjects: "no" };

/** The correction for “not this pet”: the items in question do not belong to the pet at all. */
const NOT_THIS = {
  same_subject: ({ cluster_ids }) => ["hide", { cluster_ids: [cluster_ids[1]] }],
  stranger: ({ sides }) => ["dismiss", { media_ids: [sides[0][0]] }],
};

const KEYS = { s: "same", ArrowRight: "same", d: "different", ArrowLeft: "different", x: "not", l: "later", " ": "later", ArrowDown: "later" };

export function reviewView(desk) {
  const element = h("div", { class: "review" });
  const later = new Set(JSON.parse(sessionStorage.getItem(`sploot-later-${desk.pet}`) ?? "[]"));
  const answered = new Set();
  let waiting = null; // the questions, best first; null while they are loaded for the first time
  let paused = [];
  let problem = null;
  let session = [];
  let loading = null;
  let turn = 0; // the number of answers and undos, by which outdated responses are recognised

  function load() {
    const asked = turn;
    loading ??= get(`pets/${desk.pet}/suggestions?limit=${BATCH + later.size + answered.size}`)
      .then((found) => {
        // outdated: a newer answer or undo is in progress, and loads the questions again when it ends
        if (asked !== turn) return;
        waiting = found.suggestions.filter((one) => !later.has(one.suggestion_id) && !answered.has(one.suggestion_id));
        paused = found.paused;
        problem = null;
      })
      .catch((error) => (problem = error.message))
      .finally(() => ((loading = null), update()));
    return loading;
  }

  /** Load the questions once no request and no correction is in progress. */
  async function reload() {
    await loading;
    if (!desk.open.length) await load();
  }

  function answer(kind) {
    const question = waiting?.[0];
    if (!question || !desk.may("merge")) return;
    if (kind === "later") {
      later.add(question.suggestion_id);
      sessionStorage.setItem(`sploot-later-${desk.pet}`, JSON.stringify([...later]));
      waiting.shift();
      if (!waiting.length) load();
      return update();
    }
    const [verb, body] = correctionOf(question, kind) ?? [];
    if (!verb) return;
    waiting.shift();
    turn += 1;
    answered.add(question.suggestion_id);
    const act = { question, kind };
    session.push(act);
    const { pet_id, ...rest } = body;
    desk.act(verb, rest, { what: `${LABELS[kind]}: ${question.question}` }).then((ended) => {
      act.ended = ended;
      if (ended.state !== "done") answered.delete(question.suggestion_id);
      reload();
    });
    update();
  }

  function undo() {
    const last = session.findLast((act) => !act.isUndone);
    if (!last) return desk.undo();
    last.isUndone = true;
    answered.delete(last.question.suggestion_id);
    waiting = [last.question, ...(waiting ?? [])];
    turn += 1;
    Promise.resolve(desk.undo()).then(reload);
    update();
  }

  function update() {
    if (problem) return fill(element, h("p", { class: "banner is-critical" }, problem), h("button", { type: "button", onclick: load }, "Try again"));
    if (waiting === null) return fill(element, h("p", { class: "working", role: "status" }, "Looking for questions…"));
    const question = waiting[0];
    const shown = element.querySelector("[data-question]")?.dataset.question;
    const focus = document.activeElement?.dataset?.answer;
    fill(element, question ? card(question) : done(), gained());
    if (question && question.suggestion_id !== shown) element.scrollIntoView({ block: "nearest" });
    if (focus) element.querySelector(`[data-answer=${focus}]`)?.focus();
  }

  function card(question) {
    const [one, other] = question.sides;
    const names = question.kind === "same_subject" ? question.cluster_ids.map((id) => nameOf(desk, id)) : question.kind === "stranger" ? ["This item", nameOf(desk, question.cluster_ids[0])] : ["One half", "The other half"];
    const button = (kind, key, extra = {}) => h("button", { type: "button", class: `answer is-${kind}`, "data-answer": kind, disabled: !desk.may("merge"), onclick: () => answer(kind), ...extra }, h("span", {}, LABELS[kind]), h("kbd", {}, key));
    return h(
      "section",
      { class: "question", "data-question": question.suggestion_id, "aria-label": "Question" },
      h("h2", {}, sentence(desk, question)),
      h("div", { class: "sides" }, side(desk, one, names[0]), side(desk, other, names[1])),
      h("p", { class: "quiet odds" }, `The machine guesses: ${oddsOf(question)}. An answer is worth about ${items(Math.max(1, Math.round(question.gain)))}.`),
      h("div", { class: "answers" }, button("different", "D"), button("same", "S"), NOT_THIS[question.kind] && button("not", "X"), button("later", "L")),
      !desk.may("merge") && h("p", { class: "banner is-warning" }, "Your role may read this pet, but not correct it."),
    );
  }

  function done() {
    if (loading) return h("section", { class: "question" }, h("p", { class: "working", role: "status" }, "Looking for more questions…"));
    return h(
      "section",
      { class: "question is-empty" },
      h("h2", {}, session.length ? "That is all for now" : "No questions about this pet"),
      h("p", { class: "quiet" }, paused.length ? "The last answers changed nothing, so these questions wait for the next recluster." : "Nothing here is doubtful enough to ask about."),
      h("div", { class: "row" }, later.size > 0 && h("button", { type: "button", onclick: () => (later.clear(), sessionStorage.removeItem(`sploot-later-${desk.pet}`), load()) }, `Ask the ${count(later.size)} left for later`), h("a", { class: "button", href: `#/pet/${desk.pet}` }, "Back to the albums")),
    );
  }

  /** The result of this session: what the answers changed, and that all earlier corrections still hold. */
  function gained() {
    const kept = session.filter((act) => !act.isUndone && act.ended?.state !== "failed");
    if (!kept.length && !session.length) return null;
    const moved = kept.reduce((sum, act) => sum + (act.ended?.nMoved ?? 0), 0);
    const all = desk.corrections();
    return h(
      "footer",
      { class: "gained", role: "status" },
      h("span", {}, h("strong", {}, count(kept.length)), kept.length === 1 ? " answer" : " answers"),
      h("span", {}, h("strong", {}, count(moved)), moved === 1 ? " item moved" : " items moved"),
      h("span", {}, h("strong", {}, `${count(all.kept)} of ${count(all.total)}`), " corrections kept"),
      desk.open.length > 0 && h("span", { class: "working" }, `${count(desk.open.length)} in progress`),
      desk.canUndo && h("button", { type: "button", class: "quiet-button", onclick: undo }, "Undo ", h("kbd", {}, "Z")),
    );
  }

  const keys = { ...Object.fromEntries(Object.entries(KEYS).map(([key, kind]) => [key, () => answer(kind)])), z: undo };
  return { element, update, load, keys, destroy: () => {} };
}

const LABELS = { same: "Same", different: "Different", not: "Not this pet", later: "Later" };

function correctionOf(question, kind) {
  if (kind === "not") return NOT_THIS[question.kind]?.(question);
  const reply = (kind === "same") === (SAME[question.kind] === "yes") ? question.yes : question.no;
  return [reply.verb, reply.body];
}

const nameOf = (desk, id) => {
  const album = desk.album(id);
  return album ? titleOf(album) : `Album ${id}`;
};

function sentence(desk, { kind, cluster_ids: ids, question }) {
  switch (kind) {
    case "same_subject":
      return `Do ${nameOf(desk, ids[0])} and ${nameOf(desk, ids[1])} show the same subject?`;
    case "stranger":
      return `Does this item belong to ${nameOf(desk, ids[0])}?`;
    case "two_subjects":
      return `Does ${nameOf(desk, ids[0])} show the same subject throughout?`;
    default:
      return question;
  }
}

function oddsOf({ kind, probability }) {
  const same = SAME[kind] === "yes" ? probability : 1 - probability;
  return same >= 0.5 ? `same, ${Math.round(100 * same)} %` : `different, ${Math.round(100 * (1 - same))} %`;
}

const side = (desk, media, name) => h("figure", { class: `side ${media.length === 1 ? "is-single" : media.length < 5 ? "is-few" : ""}` }, h("div", { class: "side-pictures" }, media.slice(0, SHOWN).map((item) => h("span", { title: item }, picture(desk.pet, item, media.length === 1 ? 300 : 150)))), h("figcaption", {}, name));
