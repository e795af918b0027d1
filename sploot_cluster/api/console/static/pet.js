// Pets: the list of all, and the page of one. The page of a pet keeps itself up to date; it is built once per visit.

import { listPage } from "./pets/list.js";
import { PetPage } from "./pets/page.js";

let page = null;

export const pet = {
  title: ({ rest: [id] }) => (id ? (page?.pet === id ? page.title : `Pet ${id}`) : "Pets"),
  every: null,
  form: ({ rest: [id = ""] }) => listPage.form(id),
  async load({ rest: [id], query }) {
    if (!id) return listPage.load(query);
    if (page?.pet !== id) {
      page?.destroy();
      page = new PetPage(id);
    }
    await page.load();
    return page;
  },
  draw(data, { rest: [id, name = "", part] }) {
    if (!id) return listPage.draw(data);
    page.open(name, part);
    return page.element.isConnected ? null : page.element;
  },
};
