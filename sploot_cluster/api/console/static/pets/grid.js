// A grid of any length: only the cells near the screen exist. It is one list box for keyboards and screen readers; the
// selection belongs to the page.

import { h } from "../dom.js";

const OVERSCAN_PX = 500;

let cells = 0;

export class Grid {
  /** `draw(item)` returns the contents of a cell, `heightOf(width)` its height; `selection` is a Selection. */
  constructor({ label, minWidth, gap = 12, heightOf, draw, nameOf, keyOf, selection, open, drag }) {
    Object.assign(this, { minWidth, gap, heightOf, draw, nameOf, keyOf, selection, open, drag });
    this.items = [];
    this.cells = new Map();
    this.active = 0;
    this.element = h("div", { class: "grid", role: "listbox", tabindex: "0", "aria-label": label, "aria-multiselectable": "true", onkeydown: (event) => this.#key(event), onfocus: () => this.#mark(), onblur: () => this.#mark() });
    this.schedule = () => (this.frame ??= requestAnimationFrame(() => ((this.frame = null), this.layout())));
    this.observer = new ResizeObserver(this.schedule);
    this.observer.observe(this.element);
    addEventListener("scroll", this.schedule, { passive: true });
  }

  destroy() {
    this.observer.disconnect();
    removeEventListener("scroll", this.schedule);
  }

  /** Show these items. Cells of items that stay are kept, and move to their new place. */
  show(items) {
    this.items = items;
    this.active = Math.max(0, Math.min(this.active, items.length - 1));
    const left = new Set(items.map(this.keyOf));
    for (const [key, cell] of this.cells) {
      if (left.has(key)) continue;
      cell.remove();
      this.cells.delete(key);
    }
    this.layout({ fresh: true });
  }

  /** Mark the selected cells. */
  mark() {
    for (const cell of this.cells.values()) this.#markCell(cell);
    this.#mark();
  }

  layout({ fresh = false } = {}) {
    const width = this.element.clientWidth;
    if (!width) return;
    this.columns = Math.max(1, Math.floor((width + this.gap) / (this.minWidth + this.gap)));
    const cellWidth = (width - this.gap * (this.columns - 1)) / this.columns;
    const cellHeight = Math.round(this.heightOf(cellWidth));
    this.rowHeight = cellHeight + this.gap;
    const rows = Math.ceil(this.items.length / this.columns);
    this.element.style.height = `${Math.max(0, rows * this.rowHeight - this.gap)}px`;
    const top = -this.element.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor((top - OVERSCAN_PX) / this.rowHeight)) * this.columns;
    const last = Math.min(this.items.length, (Math.ceil((top + innerHeight + OVERSCAN_PX) / this.rowHeight) + 1) * this.columns);
    const visible = new Map();
    for (let at = first; at < last; at++) visible.set(this.keyOf(this.items[at]), at);
    for (const [key, cell] of this.cells) {
      if (visible.has(key)) continue;
      cell.remove();
      this.cells.delete(key);
    }
    for (const [key, at] of visible) {
      const cell = this.cells.get(key) ?? this.#newCell(key);
      if (fresh || cell.at === undefined || cell.item !== this.items[at]) this.#fill(cell, this.items[at]);
      cell.at = at;
      cell.style.width = `${cellWidth}px`;
      cell.style.height = `${cellHeight}px`;
      cell.style.transform = `translate(${(at % this.columns) * (cellWidth + this.gap)}px, ${Math.floor(at / this.columns) * this.rowHeight}px)`;
      cell.setAttribute("aria-posinset", at + 1);
      cell.setAttribute("aria-setsize", this.items.length);
      this.#markCell(cell);
    }
    this.#mark();
  }

  /** Choose all items, or those between two positions. */
  choose(from = 0, to = this.items.length - 1) {
    const [low, high] = [Math.min(from, to), Math.max(from, to)];
    this.selection.add(this.items.slice(low, high + 1).map(this.keyOf));
  }

  #newCell(key) {
    const cell = h("div", { class: "cell", role: "option", id: `cell-${++cells}` });
    cell.addEventListener("click", (event) => this.#click(event, cell));
    this.drag?.(cell);
    this.cells.set(key, cell);
    this.element.append(cell);
    return cell;
  }

  #fill(cell, item) {
    if (cell.item === item) return;
    cell.item = item;
    const name = this.nameOf(item);
    cell.setAttribute("aria-label", name);
    const tick = h("span", { class: "tick", "data-tick": "", "aria-hidden": "true", title: `Choose ${name}` });
    cell.replaceChildren(this.draw(item), tick);
  }

  #markCell(cell) {
    const isChosen = this.selection.has(this.keyOf(cell.item));
    cell.classList.toggle("is-chosen", isChosen);
    cell.setAttribute("aria-selected", isChosen);
  }

  #mark() {
    this.element.classList.toggle("is-choosing", this.selection.size > 0);
    const hasFocus = document.activeElement === this.element;
    for (const cell of this.cells.values()) cell.classList.toggle("is-active", hasFocus && cell.at === this.active);
    const active = this.items[this.active] === undefined ? null : this.cells.get(this.keyOf(this.items[this.active]));
    if (active) this.element.setAttribute("aria-activedescendant", active.id);
    else this.element.removeAttribute("aria-activedescendant");
  }

  #click(event, cell) {
    if (event.target.closest("button, a, input")) return;
    this.element.focus({ preventScroll: true });
    this.active = cell.at;
    const isTick = event.target.closest("[data-tick]");
    if (event.shiftKey) {
      getSelection().removeAllRanges();
      this.#range(cell.at);
    } else if (isTick || event.ctrlKey || event.metaKey || this.selection.size) {
      this.anchor = cell.at;
      this.selection.toggle(this.keyOf(cell.item));
    } else {
      this.anchor = cell.at;
      this.open(cell.item);
    }
    this.#mark();
  }

  #range(to) {
    const anchor = Math.min(this.anchor ?? this.active, this.items.length - 1);
    this.anchor = anchor;
    this.choose(anchor, to);
  }

  #key(event) {
    if (event.target !== this.element || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(innerHeight / this.rowHeight)) * this.columns;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key in steps && this.items.length) {
      event.preventDefault();
      if (event.shiftKey) this.anchor ??= this.active;
      else this.anchor = undefined;
      this.active = Math.max(0, Math.min(this.items.length - 1, this.active + steps[event.key]));
      this.#reveal();
      if (event.shiftKey) this.#range(this.active);
      this.#mark();
    } else if (event.key === " " || event.key === "x") {
      event.preventDefault();
      this.anchor = this.active;
      if (this.items[this.active] !== undefined) this.selection.toggle(this.keyOf(this.items[this.active]));
    } else if (event.key === "Enter" && this.items[this.active] !== undefined) {
      event.preventDefault();
      this.open(this.items[this.active]);
    }
  }

  #reveal() {
    const top = this.element.getBoundingClientRect().top + Math.floor(this.active / this.columns) * this.rowHeight;
    const [above, below] = [140, innerHeight - 120 - this.rowHeight];
    if (top < above) scrollBy(0, top - above);
    else if (top > below) scrollBy(0, Math.min(top - below, top - above));
    this.layout();
  }
}

/** The selection on a page: keys of albums, or of items of one album. It survives a reload of the page. */
export class Selection extends EventTarget {
  constructor(name) {
    super();
    this.name = `sploot-chosen-${name}`;
    this.keys = new Set(JSON.parse(sessionStorage.getItem(this.name) ?? "[]"));
  }

  get size() {
    return this.keys.size;
  }

  has(key) {
    return this.keys.has(key);
  }

  toggle(key) {
    this.keys.has(key) ? this.keys.delete(key) : this.keys.add(key);
    this.#changed();
  }

  add(keys) {
    for (const key of keys) this.keys.add(key);
    this.#changed();
  }

  clear() {
    if (!this.keys.size) return;
    this.keys.clear();
    this.#changed();
  }

  /** Deselect everything that is not among `keys`, and return how many were deselected. */
  keep(keys) {
    if (!this.keys.size) return 0;
    const there = new Set(keys);
    const gone = [...this.keys].filter((key) => !there.has(key));
    for (const key of gone) this.keys.delete(key);
    if (gone.length) this.#changed();
    return gone.length;
  }

  #changed() {
    if (this.keys.size && this.keys.size <= 2_000) sessionStorage.setItem(this.name, JSON.stringify([...this.keys]));
    else sessionStorage.removeItem(this.name);
    this.dispatchEvent(new Event("change"));
  }
}
