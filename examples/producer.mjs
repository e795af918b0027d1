// Enqueue one embedding from Node.js, without any package: an XADD in Redis' protocol over a plain socket.
// Usage: REDIS_URL=redis://127.0.0.1:6379/0 node producer.mjs PET_ID MEDIA_ID
import { randomUUID } from "node:crypto";
import net from "node:net";

const [petId, mediaId] = process.argv.slice(2);
const url = new URL(process.env.REDIS_URL ?? "redis://127.0.0.1:6379/0");
const values = Float32Array.from([0.1, -0.25, 1.5, 3e-5]);

const event = {
  schema: "embedding.ingested/1",
  event_id: randomUUID(), // if sent again with the same id, it counts as the same event
  pet_id: petId, // decimal text: an int64 does not fit into a JavaScript number
  media_id: mediaId,
  model: "example@1",
  dim: String(values.length),
  encoding: "f32le", // the bytes of a Float32Array on any little-endian machine
  embedding: Buffer.from(values.buffer),
};

function encode(words) {
  const parts = [`*${words.length}\r\n`];
  for (const word of words) {
    const bytes = Buffer.isBuffer(word) ? word : Buffer.from(String(word));
    parts.push(`$${bytes.length}\r\n`, bytes, "\r\n");
  }
  return Buffer.concat(parts.map((part) => Buffer.from(part)));
}

const target = url.protocol === "unix:" ? { path: url.pathname } : { host: url.hostname, port: Number(url.port || 6379) };
const socket = net.connect(target, () => {
  if (url.password) socket.write(encode(["AUTH", ...(url.username ? [url.username] : []), url.password]));
  // '*': Redis chooses the entry id. Never trim this stream: it holds only work that is not done.
  socket.write(encode(["XADD", "streams:embedding.ingested", "*", ...Object.entries(event).flat()]));
});
socket.on("data", (answer) => {
  const lines = answer.toString().split("\r\n").filter((line) => line && line !== "+OK" && !line.startsWith("$"));
  if (!lines.length) return; // so far, only the reply to AUTH has arrived
  console.log(lines[0]);
  process.exitCode = lines[0].startsWith("-") ? 1 : 0;
  socket.end();
});
socket.on("error", (error) => {
  console.error(`${url.host}: ${error.message}`);
  process.exitCode = 1;
});
