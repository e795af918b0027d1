// JSON without rounding. JSON.parse makes every number a double, which turns 9007199254740993 into 9007199254740992,
// another pet. Here a whole number that a double cannot hold is a BigInt, and text in browsers that do not show a reviver
// the source of a number (before Chrome 114, Firefox 135, Safari 18.4); the API takes ids as either.

const INTEGER = /^-?\d+$/;

// A text, which may hold digits of its own, or a number.
const TOKENS = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

const isRounded = (digits) => INTEGER.test(digits) && !Number.isSafeInteger(Number(digits));

/** Parse JSON. */
export function read(text) {
  if (!/\d{16}/.test(text)) return JSON.parse(text);
  if (!("rawJSON" in JSON)) return JSON.parse(text.replace(TOKENS, (token) => (isRounded(token) ? `"${token}"` : token)));
  return JSON.parse(text, (_, value, context) => (typeof value === "number" && isRounded(context.source) ? BigInt(context.source) : value));
}

/** Write JSON. */
export const write = (value, indent) =>
  JSON.stringify(value, (_, part) => (typeof part !== "bigint" ? part : "rawJSON" in JSON ? JSON.rawJSON(String(part)) : String(part)), indent);

/** Compare two ids, whatever they were read as. */
export const byId = (a, b) => (BigInt(a) < BigInt(b) ? -1 : Number(BigInt(a) > BigInt(b)));
