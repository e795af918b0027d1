// Names of pets next to their ids, wherever a page of the queues links to a pet. A name is loaded once per minute.

import { get, may } from "./api.js";
import { h } from "./dom.js";

const FRESH_MS = 60_000;
const AT_ONCE = 100;

const known = new Map(); // id as text -> { name, at }
let wanted = new Set();

/** Draw a link to a pet with its name, which appears once it is loaded, and its id. */
export function petLink(id) {
  const key = String(id);
  const link = h("a", { href: `#/pet/${key}`, data: { pet: key } }, labelOf(key));
  if (may("list_pets") && !(performance.now() - known.get(key)?.at < FRESH_MS)) {
    if (!wanted.size) setTimeout(load);
    wanted.add(key);
  }
  return link;
}

/** Return the name and id of a pet; only the id if the name is not known. */
export function labelOf(id) {
  const name = known.get(String(id))?.name;
  return name ? `${name} (${id})` : String(id);
}

/** Remember the name of a pet; `name` is null if the pet has none. */
export const named = (id, name) => known.set(String(id), { name, at: performance.now() });

async function load() {
  const ids = [...wanted];
  wanted = new Set();
  for (let at = 0; at < ids.length; at += AT_ONCE) {
    const some = ids.slice(at, at + AT_ONCE);
    try {
      const { pets } = await get(`pets?${new URLSearchParams(some.map((id) => ["pet_id", id]))}`);
      for (const id of some) named(id, null);
      for (const { pet_id: id, name } of pets) named(id, name);
    } catch {
      return; // only the ids are shown; the next redraw tries again
    }
    for (const link of document.querySelectorAll("a[data-pet]")) {
      const label = labelOf(link.dataset.pet);
      if (link.textContent !== label) link.textContent = label;
    }
  }
}
