// Navigation: the fragment of the address names a page and its parameters, so every page can be linked to.

import { Refused, Unanswered, forget, me, may, recognise, token } from "./api.js";
import { h, notice } from "./dom.js";
import { activity } from "./activity.js";
import { dead } from "./dead.js";
import { find } from "./find.js";
import { incidents } from "./incidents.js";
import { job } from "./job.js";
import { jobs, listenForSearches } from "./jobs.js";
import { pet } from "./pet.js";
import { queues } from "./queues.js";
import { redraw } from "./redraw.js";

const PLACES = { queues, incidents, activity, dead, pet, job, jobs, find };
const STALE_AFTER_S = 20;
const OLD_AFTER_S = 60;

const main = document.getElementById("main");
const freshness = document.getElementById("freshness");
const places = new Map(); // address -> how far its page was scrolled

let here = null;
let timer = null;
let loadedAt = null;
let failing = false;

/** Return the page for a broken link, which shows what is wrong with it. */
const broken = (problem) => ({
  title: () => "Broken link",
  every: null,
  isPublic: true,
  load: async () => null,
  draw: () => [h("h1", {}, "Broken link"), h("p", { class: "banner is-critical" }, problem), h("p", {}, "Choose a page above, or correct the address.")],
});

/** The page that a person needs first: a labeller the pets, everyone else the queues. */
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

/** Load and draw the page that the address names; `again` if it is the page that is shown. */
async function show({ again = false } = {}) {
  clearTimeout(timer);
  const visit = (here = address());
  const { place } = visit;
  for (const link of document.querySelectorAll("header nav a")) {
    if (link.dataset.place === visit.name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${place.title(visit)} · sploot-cluster`;
  try {
    if (me() === null && !place.isPublic) await recognise();
    showCaller();
    const data = await place.load(visit);
    if (here !== visit) return;
    document.getElementById("sign-in").hidden = true;
    [loadedAt, failing] = [Date.now(), false];
    draw(place.draw(data, visit, () => show({ again: true })), { again, visit });
  } catch (error) {
    if (here !== visit) return;
    if (error instanceof Refused && error.status === 401) return askForToken();
    failing = error instanceof Unanswered;
    if (!failing && !(error instanceof Refused)) console.error(error);
    if (!again) draw([h("h1", {}, place.title(visit)), place.form?.(visit), h("p", { class: "banner is-critical" }, error.message)], { again, visit });
    else if (!failing) notice(error.message, { kind: "bad" });
  }
  showFreshness();
  if (place.every) timer = setTimeout(() => (document.hidden ? null : show({ again: true })), place.every);
}

function draw(drawn, { again, visit }) {
  if (drawn !== null) {
    const children = [drawn].flat(3).filter(Boolean);
    if (again) return redraw(main, children);
    main.replaceChildren(...children);
  }
  if (again) return;
  main.focus({ preventScroll: true });
  scrollTo({ top: places.get(visit.hash) ?? 0, behavior: "instant" });
}

// -- who is there ------------------------------------------------------------------------------------------------

function askForToken() {
  const form = document.getElementById("sign-in");
  const isWrong = token.get() !== "";
  const secret = h("input", { type: "password", name: "secret", autocomplete: "off", required: true, "aria-label": "Secret", "aria-describedby": isWrong ? "wrong-secret" : null });
  const enter = (event) => {
    event.preventDefault();
    token.set(secret.value.trim());
    show();
  };
  forget();
  showCaller();
  form.replaceChildren(
    h("h1", {}, "Sign in"),
    isWrong && h("p", { class: "banner is-critical", id: "wrong-secret", role: "alert" }, "This server does not know that secret. Check for missing characters, or ask an operator whether the token was replaced."),
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

/** Mark old numbers as old, so that an outage does not look like an idle system. */
function showFreshness() {
  const age = loadedAt === null ? null : Math.round((Date.now() - loadedAt) / 1000);
  const stale = failing || (here.place.every && age > STALE_AFTER_S);
  const text = age === null ? "" : stale ? `${age} s old` : age > OLD_AFTER_S ? `loaded ${Math.round(age / 60)} min ago` : "";
  freshness.textContent = [text, failing && "the server does not answer"].filter(Boolean).join("; ");
  freshness.classList.toggle("is-stale", Boolean(stale));
}

const again = () => show({ again: true });

listenForSearches();

document.getElementById("refresh").addEventListener("click", again);
setInterval(showFreshness, 1000);
addEventListener("scroll", () => here && places.set(here.hash, scrollY), { passive: true });
addEventListener("hashchange", () => show());
document.addEventListener("visibilitychange", () => document.hidden || again());
history.scrollRestoration = "manual";
show();
