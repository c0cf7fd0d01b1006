// The endpoint as the page uses it: OpenAI's Images API with streaming, as any other client would.

let key = sessionStorage.getItem("key") ?? "";

export function useKey(text) {
  key = text;
  sessionStorage.setItem("key", text);
}

function headers() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

export class Refused extends Error {
  constructor(status, problem) {
    super(problem?.message ?? `the server answered ${status}`);
    this.status = status;
  }
}

async function answer(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Refused(response.status, body.error);
}

export async function models() {
  const response = await answer(await fetch("v1/models", { headers: headers() }));
  return (await response.json()).data;
}

// The schema of a request: what may be asked, and its limits.
export async function schema() {
  const response = await answer(await fetch("openapi.json"));
  return (await response.json()).components.schemas;
}

// Draws one image; onPreview(event) is called for each image on the way. Resolves to the last event.
export async function draw(body, onPreview, signal) {
  const response = await answer(await fetch("v1/images/generations", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers() },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  }));
  for await (const event of events(response.body)) {
    if (event.type === "error") throw new Refused(200, event.error);
    if (event.type === "image_generation.completed") return event;
    onPreview(event);
  }
  throw new Refused(200, { message: "the stream ended without an image" });
}

// Server-sent events: blocks of lines that end with an empty line.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
      if (data.length) yield JSON.parse(data.join("\n"));
    }
  }
}

export function image(event) {
  const bytes = Uint8Array.from(atob(event.b64_json), (letter) => letter.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: `image/${event.output_format}` }));
}
