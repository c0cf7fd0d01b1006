// The page: two panes that draw the same prompt at the same seed, the adapters' sliders, and what was drawn before.

import { draw, models, image, Refused, schema, useKey } from "./api.js";

const PREVIEWS = 3;
const KEPT = 12;
const $ = (id) => document.getElementById(id);
const panes = [makePane("left"), makePane("right")];
const strengths = new Map(); // adapter -> { element, values: { scale, down, mid, up }, show }
const combined = new Map(); // model -> the adapters that it takes
const recent = []; // { prompt, seed, images }, newest first
let going = null; // aborts what is being drawn

function makePane(role) {
  const element = $("pane").content.firstElementChild.cloneNode(true);
  element.querySelector(".role").textContent = role;
  $("panes").append(element);
  const find = (selector) => element.querySelector(selector);
  return {
    element, role, model: find("select"), image: find("img"), progress: find("progress"),
    time: find(".time strong"), stages: find(".time span"), hash: find(".hash"),
  };
}

async function load() {
  try {
    const [served, schemas] = await Promise.all([models(), schema()]);
    $("locked").hidden = true;
    showLimits(schemas);
    showModels(served);
    if (served.some((model) => model.state === "starting")) setTimeout(load, 2000);
  } catch (error) {
    tell(error);
  }
}

function showLimits(schemas) {
  const fields = schemas.ImageRequest.properties;
  const number = (name) => fields[name].anyOf.find((kind) => kind.type !== "null");
  $("steps").max = number("num_inference_steps").maximum;
  $("guidance").max = number("guidance_scale").maximum;
  $("prompt").maxLength = fields.prompt.maxLength;
  const known = fields.scheduler.anyOf.find((kind) => kind.enum).enum;
  if (!$("scheduler").options.length) $("scheduler").append(...known.map((name) => new Option(name, name)));
}

function showModels(served) {
  $("variants").replaceChildren(...served.map((model) => {
    const item = document.createElement("li");
    item.className = model.state;
    item.textContent = model.state === "ready" ? model.id : `${model.id}: ${model.reason ?? model.state}`;
    return item;
  }));
  const usable = served.filter((model) => model.state !== "stopped");
  const base = usable.find((model) => model.kind === "base") ?? usable[0];
  const tuned = usable.find((model) => model.kind !== "base") ?? base;
  panes.forEach((pane, index) => {
    const chosen = pane.model.value || (index ? tuned : base)?.id;
    pane.model.replaceChildren(...usable.map((model) => new Option(model.id, model.id)));
    pane.model.value = chosen;
  });
  for (const { id, adapters } of usable) {
    combined.set(id, adapters);
    for (const name of adapters) if (!strengths.has(name)) addAdapter(name);
  }
  followModel();
}

function addAdapter(name) {
  const values = { scale: 0, down: 1, mid: 1, up: 1 };
  const element = $("adapter").content.firstElementChild.cloneNode(true);
  element.querySelector("legend").textContent = name;
  const show = () => element.querySelectorAll("input").forEach((input) => {
    input.value = values[input.name];
    input.nextElementSibling.textContent = Number(values[input.name]).toFixed(2);
  });
  element.addEventListener("input", ({ target }) => {
    values[target.name] = Number(target.value);
    show();
  });
  strengths.set(name, { element, values, show });
  show();
  $("adapters").append(element);
}

// A LoRA that is chosen as the model is an adapter at full strength; others are off until they are moved. A model that
// takes none (a LoRA in its weights) has no sliders.
function followModel() {
  const model = panes[1].model.value;
  const known = combined.get(model) ?? [];
  $("mix").hidden = !known.length;
  for (const [name, { element, values, show }] of strengths) {
    element.hidden = !known.includes(name);
    values.scale = name === model ? 1 : 0;
    show();
  }
}

function adapters(model) {
  const known = combined.get(model) ?? [];
  const used = [...strengths].filter(
    ([name, { values }]) => known.includes(name) && (values.scale !== 0 || name === model),
  );
  return used.map(([name, { values }]) => ({ name, ...values }));
}

function request(pane, index) {
  const body = {
    model: pane.model.value,
    prompt: $("prompt").value,
    seed: Number($("seed").value),
    num_inference_steps: Number($("steps").value),
    guidance_scale: Number($("guidance").value),
    scheduler: $("scheduler").value,
    size: $("size").value,
    partial_images: PREVIEWS,
  };
  if ($("negative").value) body.negative_prompt = $("negative").value;
  if (index && adapters(body.model).length) body.adapters = adapters(body.model);
  return body;
}

function show(pane, event) {
  if (pane.image.src) URL.revokeObjectURL(pane.image.src);
  pane.image.src = image(event);
  pane.image.hidden = false;
  pane.image.alt = `${pane.model.value}: ${$("prompt").value}`;
  pane.image.onload = () => pane.image.classList.toggle("small", pane.image.naturalWidth < 256);
}

async function fill(pane, index) {
  pane.progress.hidden = false;
  pane.progress.value = 0;
  pane.time.textContent = pane.stages.textContent = pane.hash.textContent = "";
  pane.time.classList.remove("bad-image");
  try {
    const last = await draw(request(pane, index), (event) => {
      show(pane, event);
      pane.progress.value = event.sdxl_ray.step / event.sdxl_ray.steps;
    }, going.signal);
    show(pane, last);
    const [times] = last.sdxl_ray.times;
    pane.time.textContent = `${Math.round(last.sdxl_ray.total_ms)} ms`;
    pane.stages.textContent = ["queue", "text", "denoise", "decode"]
      .map((stage) => `${stage} ${Math.round(times[`${stage}_ms`])}`).join(" · ");
    const hash = last.sdxl_ray.artifact.slice(0, 12);
    const mixed = Object.keys(last.sdxl_ray.adapters).join(" + ");
    const cut = Object.entries(last.sdxl_ray.truncated)
      .map(([name, text]) => `${name.replace("_", " ")} cut after ${text.used_tokens} of ${text.tokens} tokens`);
    pane.hash.textContent = [hash ? `artifact ${hash}` : "the base's weights", mixed && `with ${mixed}`, ...cut]
      .filter(Boolean).join(", ");
    return last;
  } catch (error) {
    if (error.name === "AbortError") return null;
    pane.time.textContent = "not drawn";
    pane.time.classList.add("bad-image");
    pane.hash.textContent = error.message;
    throw error;
  } finally {
    pane.progress.hidden = true;
  }
}

async function drawBoth() {
  going?.abort();
  const mine = going = new AbortController();
  $("draw").disabled = true;
  say("drawing ...");
  const asked = { prompt: $("prompt").value, seed: $("seed").value };
  try {
    const drawn = $("alone").checked
      ? [await fill(panes[0], 0), await fill(panes[1], 1)]
      : await Promise.all(panes.map(fill));
    if (drawn.every(Boolean)) {
      keep(asked, drawn);
      say(`seed ${asked.seed}`);
    }
  } catch (error) {
    tell(error);
  } finally {
    if (going === mine) $("draw").disabled = false;
  }
}

function keep(asked, drawn) {
  recent.unshift({ ...asked, images: drawn.map(image), models: panes.map((pane) => pane.model.value) });
  for (const old of recent.splice(KEPT)) old.images.forEach(URL.revokeObjectURL);
  $("past").hidden = false;
  $("shelf").replaceChildren(...recent.map(entry));
}

function entry(one) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.title = "Take this prompt and seed again";
  const two = document.createElement("span");
  two.className = "two";
  two.append(...one.images.map((source, index) => {
    const image = new Image();
    image.src = source;
    image.alt = one.models[index];
    image.onload = () => image.classList.toggle("small", image.naturalWidth < 128);
    return image;
  }));
  const words = document.createElement("span");
  words.className = "words";
  words.textContent = `${one.seed}: ${one.prompt}`;
  button.append(two, words);
  button.addEventListener("click", () => {
    $("prompt").value = one.prompt;
    $("seed").value = one.seed;
    $("prompt").focus();
  });
  item.append(button);
  return item;
}

function say(text) {
  $("said").textContent = text;
  $("said").className = "";
}

function tell(error) {
  $("said").textContent = error.message;
  $("said").className = "bad";
  if (error instanceof Refused && error.status === 401) $("locked").hidden = false;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  drawBoth();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("dice").addEventListener("click", () => { $("seed").value = Math.floor(Math.random() * 2 ** 32); });
$("key").addEventListener("change", ({ target }) => { useKey(target.value); load(); });
panes[1].model.addEventListener("change", followModel);
load();
