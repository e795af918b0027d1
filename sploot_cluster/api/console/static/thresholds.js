// The thresholds of the alerts. Figures that cross one are coloured. A test compares thresholds.json with the alerts.

import { asset } from "./api.js";

let known = null;

/** Load the thresholds, once. */
export async function thresholds() {
  known ??= await asset("thresholds.json");
  return known;
}

const BEYOND = { ">": (value, level) => value > level, ">=": (value, level) => value >= level, "<": (value, level) => value < level };

/** Return the thresholds of a signal, as a list of [value, level]. */
export const limitsOf = (signal) => ["warning", "critical"].filter((level) => typeof known?.[signal]?.[level] === "number").map((level) => [known[signal][level], level]);

/** Return `warning`, `critical` or null for the value of a signal. */
export function levelOf(signal, value) {
  const limits = known?.[signal];
  if (!limits || value === null || value === undefined) return null;
  const beyond = BEYOND[limits.comparator];
  return ["critical", "warning"].find((level) => limits[level] !== null && beyond(value, limits[level])) ?? null;
}
