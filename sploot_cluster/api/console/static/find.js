// The page of search results: a job, pets, an item, unfinished jobs, and dead letters.

import { get, may, Refused } from "./api.js";
import { count, h, number, table, when } from "./dom.js";
import { jobTable } from "./jobs.js";
import { petLink } from "./names.js";

const ITEM = /^([1-9][0-9]{0,18})[ /](.+)$/;
const MOST_OF_A_NAME = 100;

export const find = {
  title: ({ query }) => `Search: ${query.get("text") ?? ""}`,
  every: null,
  async load({ query }) {
    const text = (query.get("text") ?? "").trim();
    if (!text) return { text };
    const [, itemPet, item] = text.match(ITEM) ?? [];
    const name = itemPet ?? text;
    const [job, pets, found, why] = await Promise.all([
      known(`jobs/${encodeURIComponent(text)}`),
      name.length <= MOST_OF_A_NAME ? get(`pets?search=${encodeURIComponent(name)}&limit=20`) : null,
      may("search_jobs") ? get(`queues/search?text=${encodeURIComponent(item ?? text)}`) : null,
      item ? known(`pets/${itemPet}/media/${encodeURIComponent(item)}/why`) : null,
    ]);
    return { text, job, pets: pets?.pets ?? [], found, why, item, itemPet };
  },
  draw({ text, job, pets = [], found, why, item, itemPet }) {
    if (!text) return [h("h1", {}, "Search"), h("p", { class: "quiet" }, "Enter a job, the id or name of a pet, an item as “42 beach.jpg”, an actor, or part of an error.")];
    const nothing = !job && !pets.length && !why && !found?.jobs.length && !found?.dead_letters.length;
    return [
      h("h1", {}, `Search: ${text}`),
      nothing && h("p", { class: "banner" }, "Nothing matches this id, number or error. Jobs that ended more than a day ago are forgotten."),
      job && section("Job", h("p", {}, h("a", { class: "id", href: `#/job/${encodeURIComponent(job.job_id)}` }, job.job_id), ` ${job.state}: ${job.reason}`)),
      why && section("Item", h("p", {}, h("a", { href: `#/pet/${itemPet}` }, `Item ${item} of pet ${itemPet}`), ` is ${why.cluster_id === null ? "in no cluster" : `in cluster ${why.cluster_id}`}: ${why.reason}`)),
      pets.length > 0 && section("Pets", table(["pet", ...["items", "albums", "loose"].map((text) => ({ text, class: "number" }))], pets.map((one) => [h("a", { href: `#/pet/${one.pet_id}` }, one.name ? `${one.name} (${one.pet_id})` : one.pet_id), number(count(one.n_media)), number(count(one.n_clusters)), number(count(one.n_noise))]))),
      found?.jobs.length > 0 && section("Unfinished jobs", jobTable(found.jobs, { withQueue: true })),
      found?.dead_letters.length > 0 && section("Dead letters", deadTable(found.dead_letters)),
      found && !found.is_complete && h("p", { class: "quiet" }, "There are more matches than shown, or more dead letters than were searched. Narrow the search."),
    ];
  },
};

const section = (title, content) => [h("h2", {}, title), content];

const deadTable = (found) =>
  table(["died", "queue", "actor", "pet", "error"], found.map((one) => [
    when(one.died_at),
    h("a", { href: `#/dead/${one.queue}` }, one.queue),
    one.actor ?? "–",
    one.pet_id ? petLink(one.pet_id) : "–",
    one.error.slice(0, 300),
  ]));

/** Return the response to a GET, or null if the resource does not exist or is not permitted. */
async function known(path) {
  try {
    return await get(path);
  } catch (error) {
    if (error instanceof Refused && (error.status === 404 || error.status === 403)) return null;
    throw error;
  }
}
