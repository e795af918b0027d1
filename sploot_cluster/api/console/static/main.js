// Navigation: the fragment of the address names a page and its parameters, so every page can be linked to.

import { Refused, token } from "./api.js";
import { h, notice } from "./dom.js";
import { dead } from "./dead.js";
import { job } from "./job.js";
import { pet } from "./pet.js";
import { queues } from "./queues.js";

const PLACES = { queues, dead, pet, job };
const main = document.getElementById("main");
const freshness = document.getElementById("freshness");

let here = null;
let timer = null;
let loadedAt = null;
let failing = false;

/** Return the page for a broken link, which shows what is wrong with it. */
const broken = (problem) => ({
  title: () => "Broken link",
  every: null,
  load: async () => null,
  draw: () => [h("h1", {}, "Broken link"), h("p", { class: "banner is-critical" }, problem), h("p", {}, "Choose a page above, or correct the address.")],
});

function address() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  const visit = { name: name || "queues", rest: [], query: new URLSearchParams(query) };
  if (!Object.hasOwn(PLACES, visit.name)) return { ...visit, place: broken(`There is no page “${name}”.`) };
  try {
    return { ...visit, place: PLACES[visit.name], rest: rest.map(decodeURIComponent) };
  } catch {
    return { ...visit, place: broken(`“${path}” is incomplete or mistyped: every % must be followed by two hexadecimal digits, and the decoded bytes must be UTF-8.`) };
  }
}

/** Load and draw the page that the address names. */
async function show({ again = false } = {}) {
  clearTimeout(timer);
  const visit = (here = address());
  const { place } = visit;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.place === visit.name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${place.title(visit)} · sploot-cluster`;
  try {
    const data = await place.load(visit);
    if (here !== visit) return;
    document.getElementById("sign-in").hidden = true;
    [loadedAt, failing] = [Date.now(), false];
    const drawn = place.draw(data, visit, () => show({ again: true }));
    if (!again || drawn !== null) main.replaceChildren(...[drawn].flat(3).filter(Boolean));
    if (!again) main.focus({ preventScroll: true });
  } catch (error) {
    if (here !== visit) return;
    if (error instanceof Refused && error.status === 401) return askForToken();
    failing = !(error instanceof Refused);
    if (!again) main.replaceChildren(h("h1", {}, place.title(visit)), h("p", { class: "banner is-critical" }, error.message));
    else if (!failing) notice(error.message, { kind: "bad" });
  }
  showFreshness();
  if (place.every) timer = setTimeout(() => (document.hidden ? null : show({ again: true })), place.every);
}

function askForToken() {
  const form = document.getElementById("sign-in");
  const secret = h("input", { type: "password", name: "secret", autocomplete: "off", required: true, "aria-label": "Secret" });
  const enter = (event) => {
    event.preventDefault();
    token.set(secret.value.trim());
    show();
  };
  form.replaceChildren(
    h("h1", {}, "Sign in"),
    h("p", { class: "quiet" }, "This server requires a token. Enter the secret of one of the entries of SPLOOT_API_TOKENS; it is kept in this tab only."),
    h("form", { class: "row", onsubmit: enter }, secret, h("button", { class: "main" }, "Sign in")),
  );
  form.hidden = false;
  main.replaceChildren();
  secret.focus();
}

/** Mark old numbers as old, so that an outage does not look like an idle system. */
function showFreshness() {
  if (loadedAt === null) return (freshness.textContent = failing ? "The server does not answer." : "");
  const age = Math.round((Date.now() - loadedAt) / 1000);
  const stale = failing || (here.place.every && age > 20);
  freshness.textContent = stale ? `${age} s old${failing ? "; the server does not answer" : ""}` : "";
  freshness.classList.toggle("is-stale", Boolean(stale));
}

setInterval(showFreshness, 1000);
addEventListener("hashchange", () => show());
document.addEventListener("visibilitychange", () => document.hidden || show({ again: true }));
show();
