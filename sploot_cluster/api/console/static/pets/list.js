// The list of all pets, with a search by name or id, sorted by default so that pets that need most work come first.

import { get } from "../api.js";
import { count, fill, go, h } from "../dom.js";
import { cover, coverOf } from "./tiles.js";

const PAGE = 50;

// Pets with more items than this have no cover in the list, because the response with their clusters would be too
// large.
const MOST_FOR_COVER = 5_000;
const ORDERS = { noise: "most loose items", items: "most items", newest: "newest ids", id: "ids" };

export const listPage = {
  async load(query) {
    const search = query.get("search") ?? "";
    const order = ORDERS[query.get("order")] ? query.get("order") : "noise";
    try {
      return { order, search, page: await fetchPage({ order, search }) };
    } catch (error) {
      // there are too many pets to sort by number of items
      if (query.has("order") || !error.problem?.errors?.some(({ field }) => field === "order")) throw error;
      return { order: "newest", search, page: await fetchPage({ order: "newest", search }) };
    }
  },

  /** Return a form to enter a pet id. It is shown above the error that an invalid id caused. */
  form(id) {
    const field = h("input", { type: "search", name: "search", value: id, required: true, inputmode: "numeric", "aria-label": "Pet id" });
    return h("form", { class: "row tools", onsubmit: (event) => (event.preventDefault(), go(`#/pet/${encodeURIComponent(field.value.trim())}`)) }, field, h("button", { class: "main" }, "Show"));
  },

  draw({ order, search, page }) {
    const found = h("div", {});
    const field = h("input", { type: "search", name: "search", value: search, placeholder: "Name, or id", "aria-label": "Name or id of a pet", autocomplete: "off", maxlength: 100 });
    const select = h("select", { name: "order", "aria-label": "Order", onchange: () => refresh() }, Object.entries(ORDERS).map(([value, text]) => h("option", { value, selected: value === order }, text)));
    const asked = () => ({ order: select.value, search: field.value.trim() });
    let typing = null;
    field.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(refresh, 250);
    });

    /** Show the pets that match now. The field keeps the focus, and the URL can be shared. */
    async function refresh() {
      const wanted = asked();
      try {
        const answer = await fetchPage(wanted);
        if (asked().search !== wanted.search || asked().order !== wanted.order) return;
        history.replaceState(null, "", `#/pet?${new URLSearchParams(wanted)}`);
        show(answer);
      } catch (error) {
        fill(found, h("p", { class: "banner is-critical" }, error.message));
      }
    }

    function show(answer) {
      const rows = h("div", { class: "pet-list" });
      const more = h("p", {});
      const wanted = asked();
      const add = (next) => {
        rows.append(...next.pets.map(row));
        fill(more, next.next_cursor && h("button", { type: "button", onclick: async () => add(await fetchPage({ ...wanted, cursor: next.next_cursor })) }, "Show more"));
      };
      add(answer);
      fill(found, answer.pets.length ? [rows, more] : h("div", { class: "empty" }, h("h2", {}, wanted.search ? `No pet is called ${wanted.search}, and no id contains it` : "No pets yet"), h("p", { class: "quiet" }, wanted.search ? "A search finds the beginning of a name, and any part of an id." : "Pets appear here when their first item arrives.")));
    }

    /** Open the pet with this id, or the only one that matches. */
    const open = async (event) => {
      event.preventDefault();
      clearTimeout(typing);
      const { search } = asked();
      if (/^[1-9][0-9]*$/.test(search)) return go(`#/pet/${search}`);
      await refresh();
      const rows = found.querySelectorAll(".pet-row");
      if (search && rows.length === 1) go(rows[0].getAttribute("href"));
    };
    show(page);
    return [h("h1", {}, "Pets"), h("form", { class: "row tools", onsubmit: open }, field, h("label", { class: "row" }, "by ", select), h("button", { class: "main" }, "Show")), found];
  },
};

const fetchPage = ({ order, search, cursor }) => get(`pets?${new URLSearchParams({ order, limit: PAGE, ...(search && { search }), ...(cursor && { cursor }) })}`);

function row(pet) {
  const covers = h("span", { class: "cover has-1" });
  const link = h(
    "a",
    { class: "pet-row", href: `#/pet/${pet.pet_id}` },
    covers,
    h("span", { class: "pet-name" }, h("strong", {}, pet.name ?? `Pet ${pet.pet_id}`), h("small", {}, [pet.name && `Pet ${pet.pet_id}`, pet.model ?? "no items"].filter(Boolean).join(" · "))),
    figure(pet.n_media, "items"),
    figure(pet.n_clusters, "albums"),
    figure(pet.n_noise, "loose", pet.n_noise > 0),
  );
  if (pet.n_media > MOST_FOR_COVER) return link;
  whenSeen(link, async () => {
    const { clusters, noise } = await get(`pets/${pet.pet_id}/clusters`).catch(() => ({ clusters: [], noise: [] }));
    covers.replaceWith(clusters.length ? coverOf(pet.pet_id, clusters[0], 56) : cover(pet.pet_id, noise.slice(0, 1), 56));
  });
  return link;
}

const figure = (n, what, isNotable) => h("span", { class: `figure ${isNotable ? "is-notable" : ""}` }, h("strong", {}, count(n)), " ", what);

const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    target.onseen();
  }
});

/** Call a function when an element is scrolled into view. */
function whenSeen(element, then) {
  element.onseen = then;
  seen.observe(element);
}
