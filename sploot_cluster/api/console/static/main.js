// Navigation: the fragment of the URL names a page and its parameters, so every page can be linked to.

import { Refused, Unanswered, forget, me, may, recognise, token } from "./api.js";
import { h, notice, retitle } from "./dom.js";
import { activity } from "./activity.js";
import { dead } from "./dead.js";
import { find } from "./find.js";
import { incidents } from "./incidents.js";
import { job } from "./job.js";
import { jobs, listenForSearches } from "./jobs.js";
import { ignore, isLive, listen } from "./live.js";
import { pet } from "./pet.js";
import { queues } from "./queues.js";
import { redraw } from "./redraw.js";

const PLACES = { queues, incidents, activity, dead, pet, job, jobs, find };
const OLD_AFTER_S = 60;

const main = document.getElementById("main");
const freshness = document.getElementById("freshness");
const places = new Map(); // fragment -> scroll position of its page when the user left it

let here = null;
let timer = null;
let readAt = null; // when the server read the data that is shown
let loadedAt = null; // when this page received it, on its own clock
let shown = null; // the data of the page
let problem = ""; // why no newer data is shown
let nLoads = 0; // number of loads of data that have not finished

/** Return the page for a broken link, which shows what is wrong with it. */
const broken = (problem) => ({
  title: () => "Broken link",
  every: null,
  isPublic: true,
  load: async () => null,
  draw: () => [h("h1", {}, "Broken link"), h("p", { class: "banner is-critical" }, problem), h("p", {}, "Choose a page above, or correct the URL.")],
});

/** Return the start page: the pets for a labeller, the queues for everyone else. */
const first = () => (me()?.role === "labeller" ? "pet" : "queues");

function address() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  const visit = { name: name || first(), rest: [], query: new URLSearchParams(query), hash: location.hash };
  if (!Object.hasOwn(PLACES, visit.name)) return { ...visit, place: broken(`There is no page “${name}”.`) };
  try {
    return { ...visit, place: PLACES[visit.name], rest: rest.map(decodeURIComponent) };
  } catch {
    return { ...visit, place: broken(`“${path}” is incomplete or mistyped: every % must be followed by two hexadecimal digits, and the decoded bytes must be UTF-8.`) };
  }
}

/** Load and draw the page that the fragment names; `again`: whether it is shown already. */
async function show({ again = false } = {}) {
  clearTimeout(timer);
  if (!again) {
    if (here) places.set(here.hash, scrollY);
    [readAt, loadedAt, problem] = [null, null, ""];
  }
  const visit = (here = address());
  const { place } = visit;
  for (const link of document.querySelectorAll("header nav a")) {
    if (link.dataset.place === visit.name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  retitle(place.title(visit));
  nLoads += 1;
  try {
    if (me() === null && !place.isPublic) await recognise();
    showCaller();
    const data = await place.load(visit);
    if (here !== visit) return;
    document.getElementById("sign-in").hidden = true;
    [readAt, loadedAt, problem, shown] = [new Date(), performance.now(), "", data];
    draw(place.draw(data, visit, reload), { again, visit });
    retitle(place.title(visit, data));
  } catch (error) {
    if (here !== visit) return;
    if (error instanceof Refused && error.status === 401) return askForToken();
    const isAway = error instanceof Unanswered || error.status === 503;
    if (!isAway && !(error instanceof Refused)) console.error(error);
    if (!again || loadedAt === null) draw([h("h1", {}, place.title(visit)), place.form?.(visit), h("p", { class: "banner is-critical" }, error.message)], { again, visit });
    else if (isAway) problem = error.message;
    else notice(error.message, { kind: "bad" });
  } finally {
    nLoads -= 1;
  }
  keepFresh();
}

const reload = () => show({ again: true });

/** Keep a visible page up to date, with the data that the server pushes or by loading it every few seconds. A hidden
 *  page is not updated. */
function keepFresh() {
  clearTimeout(timer);
  showFreshness();
  if (document.hidden || !here.place.news || !may("watch_queues")) ignore();
  else listen({ onNews, onProblem, onRefused: reload });
  if (here.place.every && !document.hidden) timer = setTimeout(() => (isLive() && loadedAt !== null ? keepFresh() : reload()), here.place.every);
}

function onNews(news) {
  const visit = here;
  // ignore the event while data is being loaded, because that data is newer
  if (!visit.place.news || loadedAt === null || nLoads) return;
  const data = visit.place.news(news, shown);
  if (data === null) return reload();
  const isSame = data === shown;
  [readAt, loadedAt, problem, shown] = [new Date(news.read.at), performance.now(), "", data];
  // unchanged data is drawn again only on pages that show durations, because these grow
  if (!isSame || visit.place.isAgeing) draw(visit.place.draw(data, visit, reload), { again: true, visit });
  showFreshness();
}

function onProblem(detail) {
  problem = detail;
  showFreshness();
}

let isPressed = false;
let drawnLater = null;

function draw(drawn, { again, visit }) {
  if (drawn !== null) {
    const children = [drawn].flat(3).filter(Boolean);
    if (again) {
      const now = () => here === visit && redraw(main, children);
      // do not redraw while a button is held, because a click needs the same element at its start and end
      if (isPressed) drawnLater = now;
      else now();
      return;
    }
    main.replaceChildren(...children);
  }
  if (again) return;
  main.focus({ preventScroll: true });
  scrollTo({ top: places.get(visit.hash) ?? 0, behavior: "instant" });
}

// -- the caller ----------------------------------------------------------------------------------------------------

function askForToken() {
  const form = document.getElementById("sign-in");
  const isKnown = me() !== null; // whether the server has recognised this caller before
  const trouble = isKnown
    ? "Your session has ended: this server does not accept your secret any more, or now requires one. Sign in to return to this page; nothing was changed."
    : token.get() && "This server does not know that secret. Check for missing characters, or ask an operator whether the token was replaced.";
  const secret = h("input", { type: "password", name: "secret", autocomplete: "off", required: true, "aria-label": "Secret", "aria-describedby": trouble ? "wrong-secret" : null });
  const enter = (event) => {
    event.preventDefault();
    token.set(secret.value.trim());
    show();
  };
  forget();
  ignore();
  [readAt, loadedAt, problem] = [null, null, ""];
  showFreshness();
  showCaller();
  document.getElementById("dialog").close();
  form.replaceChildren(
    h("h1", {}, "Sign in"),
    ...(trouble ? [h("p", { class: "banner is-critical", id: "wrong-secret", role: "alert" }, trouble)] : []),
    h("p", { class: "quiet" }, "This server requires a token. Enter the secret of one of the entries of SPLOOT_API_TOKENS; it is kept in this tab only."),
    h("form", { class: "row", onsubmit: enter }, secret, h("button", { class: "main" }, "Sign in")),
  );
  form.hidden = false;
  main.replaceChildren();
  secret.focus();
}

function signOut() {
  token.set("");
  forget();
  places.clear();
  show();
}

/** Show the caller's name and role, and only the links to pages that the caller may open. */
function showCaller() {
  const who = me();
  const caller = document.getElementById("caller");
  caller.hidden = !who;
  caller.replaceChildren(...(who ? [h("span", {}, h("strong", {}, who.name), ` ${who.role}`), who.has_token ? h("button", { type: "button", class: "plain", onclick: signOut }, "Sign out") : ""] : []));
  document.getElementById("search").hidden = !who || !may("get_job");
  for (const link of document.querySelectorAll("header nav a")) link.hidden = who !== null && !may(link.dataset.needs);
}

// -- how old the page is -------------------------------------------------------------------------------------------

/** Show how old the data is, and mark old data, so that an outage does not look like an idle system. */
function showFreshness() {
  const age = loadedAt === null ? null : Math.round((performance.now() - loadedAt) / 1000);
  const { every, news } = here.place;
  const live = Boolean(news) && isLive();
  const isOld = every && age !== null && age > (2 * every) / 1000 + 5;
  const isStale = Boolean(problem) || isOld;
  const time = readAt && `${readAt.toISOString().slice(11, 19)} UTC`;
  const old = isStale ? `, ${age} s old` : age > OLD_AFTER_S && !every ? `, ${Math.round(age / 60)} min ago` : "";
  const how = age === null ? "" : isStale ? "reconnecting" : live ? "live" : every ? `every ${every / 1000} s` : "";
  const [asOf, state] = freshness.children;
  asOf.textContent = time === null || age === null ? "" : `as of ${time}${old}`;
  if (state.textContent !== how) state.textContent = how;
  freshness.classList.toggle("is-stale", isStale && age !== null);
  freshness.classList.toggle("is-live", live && !isStale);
  const banner = document.getElementById("stale");
  const text = age === null || !isStale ? "" : `This page shows what was true at ${time}. ${problem || "The server does not answer."}`;
  banner.hidden = !text;
  if (banner.textContent !== text) banner.textContent = text;
}

addEventListener("pointerdown", () => (isPressed = true), true);
for (const name of ["pointerup", "pointercancel", "dragend"]) {
  addEventListener(name, () => setTimeout(release), true); // the click event comes after this event
}

function release() {
  const draw = drawnLater;
  [isPressed, drawnLater] = [false, null];
  draw?.();
}

listenForSearches();

document.getElementById("refresh").addEventListener("click", reload);
setInterval(showFreshness, 1000);
addEventListener("hashchange", () => show());
document.addEventListener("visibilitychange", () => (document.hidden ? keepFresh() : reload()));
history.scrollRestoration = "manual";
show();
