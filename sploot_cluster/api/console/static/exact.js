// JSON without rounding. JSON.parse makes every number a double, which turns 9007199254740993 into 9007199254740992,
// the id of a different pet. `read` returns an integer that a double cannot hold as a BigInt. Browsers that do not pass the
// source of a number to a reviver (before Chrome 114, Firefox 135, Safari 18.4) get text instead; the API accepts both.

const INTEGER = /^-?\d+$/;

// Matches a string, which may contain digits, or a number.
const TOKENS = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

const isRounded = (digits) => INTEGER.test(digits) && !Number.isSafeInteger(Number(digits));

// Matches where a long number may begin; item ids of many digits are strings and do not match, so large pets parse
// fast.
const LONG = /(?:^|[:,[])\s*-?\d{16}/;

/** Parse JSON. */
export function read(text) {
  if (!LONG.test(text)) return JSON.parse(text);
  if (!("rawJSON" in JSON)) return JSON.parse(text.replace(TOKENS, (token) => (isRounded(token) ? `"${token}"` : token)));
  return JSON.parse(text, (_, value, context) => (typeof value === "number" && isRounded(context.source) ? BigInt(context.source) : value));
}

/** Write JSON. */
export const write = (value, indent) =>
  JSON.stringify(value, (_, part) => (typeof part !== "bigint" ? part : "rawJSON" in JSON ? JSON.rawJSON(String(part)) : String(part)), indent);

/** Compare two ids, each a number, a BigInt or text. */
export const byId = (a, b) => (BigInt(a) < BigInt(b) ? -1 : Number(BigInt(a) > BigInt(b)));
