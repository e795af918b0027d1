// Places, and what is shown in them. The address says it all: a link to what you see is in the address bar.

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

/** A link that leads nowhere: what is wrong with it. */
const broken = (problem) => ({
  title: () => "Broken link",
  every: null,
  load: async () => null,
  draw: () => [h("h1", {}, "Broken link"), h("p", { class: "banner is-critical" }, problem), h("p", {}, "Choose a place above, or correct the address.")],
});

function address() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  const visit = { name: name || "queues", rest: [], query: new URLSearchParams(query) };
  if (!Object.hasOwn(PLACES, visit.name)) return { ...visit, place: broken(`There is no page “${name}”.`) };
  try {
    return { ...visit, place: PLACES[visit.name], rest: rest.map(decodeURIComponent) };
  } catch {
    return { ...visit, place: broken(`“${path}” is cut short or mistyped: every % in a link is followed by two hexadecimal digits, which are UTF-8 together.`) };
  }
}

/** Load and draw the place that the address names. */
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
    document.getElementById("door").hidden = true;
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
  tellFreshness();
  if (place.every) timer = setTimeout(() => (document.hidden ? null : show({ again: true })), place.every);
}

function askForToken() {
  const door = document.getElementById("door");
  const secret = h("input", { type: "password", name: "secret", autocomplete: "off", required: true, "aria-label": "Secret" });
  const enter = (event) => {
    event.preventDefault();
    token.set(secret.value.trim());
    show();
  };
  door.replaceChildren(
    h("h1", {}, "Who are you?"),
    h("p", { class: "quiet" }, "This server wants a token: the secret of an entry of SPLOOT_API_TOKENS. It stays in this tab."),
    h("form", { class: "row", onsubmit: enter }, secret, h("button", { class: "main" }, "Enter")),
  );
  door.hidden = false;
  main.replaceChildren();
  secret.focus();
}

/** Old numbers must look old: silent zeros are how outages hide. */
function tellFreshness() {
  if (loadedAt === null) return (freshness.textContent = failing ? "no answer" : "");
  const age = Math.round((Date.now() - loadedAt) / 1000);
  const stale = failing || (here.place.every && age > 20);
  freshness.textContent = stale ? `as of ${age} s ago${failing ? ", no answer since" : ""}` : "";
  freshness.classList.toggle("is-stale", Boolean(stale));
}

setInterval(tellFreshness, 1000);
addEventListener("hashchange", () => show());
document.addEventListener("visibilitychange", () => document.hidden || show({ again: true }));
show();
