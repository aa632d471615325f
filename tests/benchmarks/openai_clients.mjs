// The npm client's part of openai_clients.py: its calls of the endpoint, as rows of the table.
import fs from "node:fs";
import OpenAI, { toFile } from "openai";

const [url, path] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0, timeout: 300_000 });
const image = () => toFile(fs.createReadStream(path), "a.jpg", { type: "image/jpeg" });
const edits = [
  {},
  { stream: false },
  { partial_images: 0 },
  { stream: true, partial_images: 2 },
  { size: "1024x1024" },
  { n: 2 },
  { quality: "high", input_fidelity: "high" },
  { output_format: "webp", output_compression: 80 },
  { background: "transparent" },
  { response_format: "url" },
];

function shown(encoded) {
  const data = Buffer.from(encoded, "base64");
  const isPng = data.toString("latin1", 1, 4) === "PNG";
  return isPng ? `PNG ${data.readUInt32BE(16)}x${data.readUInt32BE(20)}` : data.toString("latin1", 8, 12);
}

async function edit(options, images) {
  const prompt = `a cup on snow, ${JSON.stringify(options)}`;
  const made = await client.images.edit({ image: images ?? (await image()), prompt, ...options });
  if (!options.stream) {
    return `${made.data.length} x ${shown(made.data[0].b64_json)}, size ${made.size}, background ${made.background}`;
  }
  const events = [];
  for await (const event of made) events.push(event);
  return `${events.map((event) => event.type).join(", ")}: ${shown(events.at(-1).b64_json)}`;
}

async function row(call, make) {
  const answer = await make().catch((error) => String(error.message).slice(0, 160));
  console.log(`| openai, npm | ${call} | ${answer} |`);
}

for (const options of edits) await row(`images.edit ${JSON.stringify(options)}`, () => edit(options));
await row("images.edit, 2 in a list", async () => edit({}, [await image(), await image()]));
