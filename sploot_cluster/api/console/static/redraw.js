// Redraws that do not disturb the user. A page is drawn again as a whole, but keeps the focus, selected text, open
// details, unsent input, and the position of every scrolled part.
//
// Elements of the old and the new page are paired by `id`, `data-key`, `name` or `aria-label`, otherwise by tag and
// order. An old element with `data-keep` replaces the new one with the same value, wherever that is, so that it keeps
// what was loaded into it.

const drawn = new WeakMap();

/** Remember the value with which a field was drawn, to detect later whether the user changed it. */
export const remember = (field, name, value) => drawn.set(field, { ...drawn.get(field), [name]: value });

// The element to which the focus returns when the dialog that it opened is closed.
let opener = null;

/** Remember the focus while a dialog is open, through all redraws. Returns a function that restores it. */
export function holdFocus() {
  opener = document.activeElement;
  return () => {
    // browsers restore the focus themselves, but not if the element was replaced meanwhile
    if (document.activeElement === document.body || document.activeElement.closest("dialog")) opener?.focus({ preventScroll: true });
    opener = null;
  };
}

/** Replace the children of `parent`, and transfer the state of each old element to its new counterpart. */
export function redraw(parent, children) {
  const next = document.createElement(parent.tagName);
  next.append(...children);
  const pairs = new Map();
  const scrolled = [];
  const active = document.activeElement;
  const caret = active && parent.contains(active) && "selectionStart" in active ? [active.selectionStart, active.selectionEnd] : null;
  const chosen = getSelection();
  const selected = !chosen.isCollapsed && parent.contains(chosen.anchorNode) && parent.contains(chosen.focusNode) ? [chosen.anchorNode, chosen.anchorOffset, chosen.focusNode, chosen.focusOffset] : null;
  keepWhole(parent, next, pairs, scrolled);
  pair(parent, next, pairs, scrolled);
  const range = selected && selected.map((part) => (part instanceof Node ? pairs.get(part) : part));
  const held = pairs.get(active);
  opener = pairs.get(opener) ?? opener;
  parent.replaceChildren(...next.childNodes);
  for (const [element, left, top] of scrolled) element.scrollTo({ left, top, behavior: "instant" });
  if (held && held !== parent) {
    held.focus({ preventScroll: true });
    if (caret && caret[0] !== null) held.setSelectionRange(...caret);
  }
  if (range?.[0] && range[2] && range[1] <= lengthOf(range[0]) && range[3] <= lengthOf(range[2])) chosen.setBaseAndExtent(...range);
}

const lengthOf = (node) => node.data?.length ?? node.childNodes.length;

const keyOf = (node) => node.id || node.dataset?.key || node.getAttribute?.("name") || node.getAttribute?.("aria-label") || null;

function pair(old, next, pairs, scrolled) {
  pairs.set(old, next);
  if (old.nodeType === Node.ELEMENT_NODE && next.isConnected === false && next.parentNode) handOver(old, next, scrolled);
  const keyed = new Map();
  const others = new Map();
  for (const child of next.childNodes) {
    const key = keyOf(child);
    if (key !== null && !keyed.has(key)) keyed.set(key, child);
    else if (others.has(child.nodeName)) others.get(child.nodeName).push(child);
    else others.set(child.nodeName, [child]);
  }
  for (const child of [...old.childNodes]) {
    const key = keyOf(child);
    const twin = key !== null && keyed.has(key) ? keyed.get(key) : others.get(child.nodeName)?.shift();
    if (twin && twin.nodeName === child.nodeName && !child.dataset?.keep && !twin.dataset?.keep) pair(child, twin, pairs, scrolled);
  }
}

function keepWhole(parent, next, pairs, scrolled) {
  const kept = new Map([...parent.querySelectorAll("[data-keep]")].map((element) => [element.dataset.keep, element]));
  for (const twin of next.querySelectorAll("[data-keep]")) {
    const element = kept.get(twin.dataset.keep);
    if (!element) continue;
    for (const part of [element, ...element.querySelectorAll("*")]) {
      pairs.set(part, part);
      if (part.scrollTop || part.scrollLeft) scrolled.push([part, part.scrollLeft, part.scrollTop]);
      for (const child of part.childNodes) pairs.set(child, child);
    }
    twin.replaceWith(element);
  }
}

function handOver(old, next, scrolled) {
  if (old.scrollTop || old.scrollLeft) scrolled.push([next, old.scrollLeft, old.scrollTop]);
  if (old.tagName === "DETAILS") next.open = old.open;
  const was = drawn.get(old) ?? {};
  if ("value" in old && /^(INPUT|TEXTAREA|SELECT)$/.test(old.tagName) && old.type !== "checkbox" && old.type !== "radio" && old.value !== String(was.value ?? defaultOf(old))) next.value = old.value;
  if ((old.type === "checkbox" || old.type === "radio") && old.checked !== Boolean(was.checked)) next.checked = old.checked;
}

const defaultOf = (field) => (field.tagName === "SELECT" ? [...field.options].find((option) => option.defaultSelected)?.value ?? field.options[0]?.value ?? "" : field.defaultValue);
