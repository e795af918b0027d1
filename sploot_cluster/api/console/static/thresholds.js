// When a number is worrying: the same values as the alerts, written next to this file from their one source.

import { asset } from "./api.js";

let known = null;

/** Loads the thresholds once; without them nothing is coloured, and the page says so. */
export async function thresholds() {
  known ??= await asset("thresholds.json");
  return known;
}

const BEYOND = { ">": (value, level) => value > level, ">=": (value, level) => value >= level, "<": (value, level) => value < level };

/** `warning`, `critical` or null for a value of a signal. */
export function levelOf(signal, value) {
  const told = known?.[signal];
  if (!told || value === null || value === undefined) return null;
  const beyond = BEYOND[told.comparator];
  return ["critical", "warning"].find((level) => told[level] !== null && beyond(value, told[level])) ?? null;
}
