// The endpoint's page. Fields have the API's names. Only the token is stored, in this tab's session storage.
//
//   photo ─► findMask: POST /v1/masks ─► mask.js, where a person may correct it
//   form ─► wantedFields ─► follow: POST /v1/ads ─► readEvents ─► cards
//
// A run is one press of Generate: one request for all variants, or one for each λ.

import * as maskCard from "./mask.js";

const NUM_PREVIEWS = 7; // about, for each image
const KEPT_RUNS = 6; // on the page
const MAX_VALUES = 8; // λ values in one comparison
const ANCHORS = ["top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom", "bottom-right"];
const MASK_SOURCES = {own_mask: "your own", alpha: "alpha channel", plain_background: "plain background",
  saliency_model: "saliency model", sam3: "SAM 3", sam2: "SAM2", vote: "networks that agree",
  review: "decided by a person"};
const RESCUED = {seed: "another seed", fusion_scale: "stronger fusion", product_pixels: "the product's own pixels"};
const SENT_AS_THEY_ARE = ["negative_prompt", "seed", "guidance_scale", "num_inference_steps", "fusion_scale", "format", "size", "channel"];

const $ = id => document.getElementById(id);
const form = $("form");
const own = name => form.elements[name].value.trim();
let options = null; // GET /v1/options
let photo = null; // File
let running = null; // AbortController of the current run
let finding = null; // AbortController of the current search for the mask

// ---- Elements: texts and attributes only. Markup would let a file name or an error inject script.
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter(child => child !== null));
  return element;
}

const facts = pairs =>
  h("dl", {class: "facts"}, ...Object.entries(pairs).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const score = value => (value === null ? "none" : value.toFixed(3));
const blobUrl = (base64, type) => URL.createObjectURL(new Blob([Uint8Array.from(atob(base64), c => c.charCodeAt(0))], {type}));

// ---- HTTP
class Problem extends Error {
  /** An error to show: the API's, or the page's own. param: the wrong field. */
  constructor(message, {param = null, status = 0, retryAfter = null} = {}) {
    const wait = retryAfter ? `${Math.ceil(retryAfter)} s` : status === 429 ? "a few seconds" : null;
    super(wait ? `${message}. Try again in ${wait}.` : message);
    this.param = status === 401 ? "token" : param;
  }
}

/** Parses JSON and keeps seeds as text: they have 63 bits, and JavaScript's numbers hold 53. */
const parseJson = text => JSON.parse(text.replace(/"seed": ?(\d+)/g, '"seed":"$1"'));

async function call(path, init = {}) {
  const token = $("token").value.trim();
  const headers = {...init.headers, ...(token && {Authorization: `Bearer ${token}`})};
  const response = await fetch(path, {...init, headers});
  if (response.ok) return response;
  const {error} = await response.json().catch(() => ({}));
  const {status} = response;
  const retryAfter = response.headers.get("Retry-After");
  const message = error?.message ?? `the server answered with status ${status}`;
  throw new Problem(status === 401 ? `A token is needed: ${message}` : message, {param: error?.param, status, retryAfter});
}

async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const {event, data} = Object.fromEntries(block.split("\n").map(line => line.split(/: (.*)/, 2)));
      if (event) yield [event, parseJson(data)]; // heartbeat comments have no event
    }
  }
}

// ---- Problems: shown in the alert region and at the field.
for (const field of document.querySelectorAll("[data-param]")) {
  const id = `${field.dataset.param.split(" ")[0]}-problem`;
  const control = field.querySelector("input, select, textarea");
  control?.setAttribute("aria-describedby", `${control.getAttribute("aria-describedby") ?? ""} ${id}`.trim());
  field.append(h("p", {class: "problem", id}));
}

function showProblem(problem) {
  $("alert").textContent = problem instanceof Problem ? problem.message : `The server cannot be reached (${problem.message}).`;
  const field = problem.param && document.querySelector(`[data-param~="${CSS.escape(problem.param)}"]`);
  if (!field) return;
  if (field.closest("details")) field.closest("details").open = true;
  field.querySelector(".problem").textContent = problem.message;
  const control = field.querySelector("input, select, textarea");
  control.setAttribute("aria-invalid", "true");
  control.focus();
}

function clearProblems() {
  $("alert").textContent = "";
  for (const note of document.querySelectorAll(".problem")) note.textContent = "";
  for (const control of document.querySelectorAll("[aria-invalid]")) control.removeAttribute("aria-invalid");
}

// ---- Controls
async function loadOptions() {
  try {
    options = await (await call("v1/options")).json();
  } catch (problem) {
    showProblem(problem);
    return;
  }
  const {sizes, default_size: size, categories, channels} = options;
  $("model").textContent = options.model;
  fill("category", Object.keys(categories).sort((a, b) => (b === "product") - (a === "product")), noun =>
    noun === "product" ? ["", "Any product"] : [noun, noun[0].toUpperCase() + noun.slice(1)]);
  fill("size", sizes, text => [text === size ? "" : text, text.replace("x", " × ")]);
  fill("channel", [{name: ""}, ...channels], ({name, width_px, height_px}) =>
    [name, name ? `${name}, ${width_px} × ${height_px}` : "None"]);
  fill("format", ["", ...options.formats], text => [text, text.toUpperCase().replace("WEBP", "WebP") || "Server default"]);
  $("num_variants").max = options.max_images;
  $("num_inference_steps").max = options.max_steps;
  for (const name of ["num_inference_steps", "guidance_scale", "fusion_scale"]) $(name).placeholder = options[name];
  $("as-photographed").checked = options.layout.as_photographed;
  showLayout();
  showScenes();
}

/** The choices of the select `id`: value and label of each item. */
function fill(id, items, describe) {
  $(id).replaceChildren(...items.map(item => new Option(...describe(item).reverse())));
}

const scenes = () => options.categories[own("category") || "product"];

function showScenes() {
  const written = $("scene").value === "" && own("prompt") ? own("prompt") : null; // kept when the category changes
  fill("scene", [...scenes().map(scene => scene.name), ""], name => [name, name.replaceAll("-", ", ") || "Own prompt"]);
  if (written !== null) $("scene").value = "";
  else showPrompt();
}

function showPrompt() {
  const scene = scenes().find(each => each.name === $("scene").value);
  if (scene) $("prompt").value = scene.prompt;
}

function showMode() {
  for (const field of document.querySelectorAll("[data-mode]")) field.hidden = field.dataset.mode !== own("mode");
}

function usePhoto(file) {
  if (!file) return;
  photo = file;
  clearProblems();
  URL.revokeObjectURL($("photo").src);
  $("photo").src = URL.createObjectURL(file);
  $("photo-name").textContent = file.name;
  $("photo-hint").textContent = `${Math.ceil(file.size / 1000)} kB. Choose, drop or paste another to replace it`;
  $("mask").value = ""; // it belonged to the earlier photograph
  findMask();
}

/** Asks for the mask of the chosen photograph, and shows it. Its errors stand beside the photograph. */
async function findMask() {
  if (!photo) return;
  finding?.abort();
  const {signal} = (finding = new AbortController());
  maskCard.hide();
  showSummary("Looking for the product.");
  const body = new FormData();
  body.append("image", photo);
  if (own("category")) body.append("category", own("category"));
  if ($("mask").files[0]) body.append("mask", $("mask").files[0]);
  try {
    const found = await (await call("v1/masks", {method: "POST", body, signal})).json();
    const shown = await $("photo").decode().then(() => $("photo"), () => null); // null: a format the browser lacks
    if (signal.aborted) return;
    const source = MASK_SOURCES[found.mask_source] ?? found.mask_source;
    await maskCard.show(shown, found, source);
    if (signal.aborted) return;
    $("empty").hidden = true;
    if (!found.mask_base64) showSummary(`No mask (${found.reason}): paint the product.`, true);
    else if (found.reason) showSummary(`The mask is doubtful (${found.reason}): accept it or paint it.`, true);
    else showSummary(`Mask: ${source}, score ${found.mask_score.toFixed(2)}.`, true);
  } catch (problem) {
    if (!signal.aborted) showSummary(`No mask: ${problem.message}`);
  }
}

function showSummary(text, withMask = false) {
  $("mask-summary").textContent = text;
  $("mask-link").hidden = !withMask;
}

/** After a change that could give another mask; one that a person painted stays. */
function findMaskAgain() {
  if (!maskCard.isEdited()) findMask();
}

/** A slider has the server's default until the user moves it. */
function showLayout() {
  for (const name of ["size", "margin"]) {
    const slider = $(`layout-${name}`);
    $(`layout-${name}-value`).textContent = slider.dataset.set ? Number(slider.value).toFixed(2) : "server default";
  }
  $("placing").hidden = $("as-photographed").checked;
  $("layout-reset").hidden = Object.keys(wantedLayout()).length === 0;
}

function resetLayout() {
  for (const slider of [$("layout-size"), $("layout-margin")]) {
    slider.value = slider.defaultValue;
    delete slider.dataset.set;
  }
  for (const anchor of form.elements.anchor) anchor.checked = false;
  $("as-photographed").checked = options.layout.as_photographed;
  showLayout();
  $("as-photographed").focus();
}

function wantedLayout() {
  const asPhotographed = $("as-photographed").checked;
  const layout = asPhotographed === (options?.layout.as_photographed ?? false) ? {} : {as_photographed: asPhotographed};
  if (asPhotographed) return layout;
  for (const name of ["size", "margin"]) {
    if ($(`layout-${name}`).dataset.set) layout[name] = Number($(`layout-${name}`).value);
  }
  if (form.elements.anchor.value) layout.anchor = form.elements.anchor.value;
  return layout;
}

/** The fields that differ from the server's defaults. Raises: Problem. */
function wantedFields() {
  if (!photo) throw new Problem("Choose a photograph of the product first", {param: "image"});
  for (const control of form.elements) {
    const shown = !control.closest("[data-mode][hidden]");
    if (shown && control.name && !control.checkValidity()) throw new Problem(control.validationMessage, {param: control.name});
  }
  const fields = {};
  if (own("category")) fields.category = own("category");
  if (own("scene")) fields.scene = own("scene");
  else if (own("prompt")) fields.prompt = own("prompt");
  else throw new Problem("Write a prompt, or choose a scene", {param: "prompt"});
  for (const name of SENT_AS_THEY_ARE) if (own(name)) fields[name] = own(name);
  if (Object.keys(wantedLayout()).length) fields.layout = JSON.stringify(wantedLayout());
  return fields;
}

/** The values of λ to compare. Raises: Problem. */
function wantedValues() {
  const values = [...new Set(own("values").split(/[\s,;]+/).filter(Boolean).map(Number))];
  if (values.length && values.length <= MAX_VALUES && values.every(value => value >= 0 && value <= 10)) return values;
  throw new Problem(`Write 1 to ${MAX_VALUES} numbers from 0 to 10, separated by commas`, {param: "values"});
}

/** The requests of a run: `files`, `fields`, and a card for each image. Raises: Problem. */
async function wantedRequests() {
  const fields = wantedFields();
  const decided = await maskCard.file();
  if (decided) fields.mask_decided = "true";
  const mask = decided ?? $("mask").files[0];
  const files = {image: photo, ...(mask && {mask})};
  if (own("mode") === "compare") {
    return wantedValues().map(value => {
      return {files, fields: {...fields, fusion_scale: String(value)}, cards: [makeCard(`λ ${value}`)]};
    });
  }
  const count = Number(own("num_variants"));
  if (count > 1) fields.num_variants = String(count);
  return [{files, fields, cards: Array.from({length: count}, (_, index) => makeCard(`Variant ${index + 1}`))}];
}

// ---- A run
async function generate() {
  if (running) return;
  clearProblems();
  if (!options) await loadOptions();
  if (!options) return;
  const controller = (running = new AbortController());
  let requests;
  try {
    requests = await wantedRequests();
  } catch (problem) {
    running = null;
    showProblem(problem);
    return;
  }
  const cards = requests.flatMap(request => request.cards);
  const product = makeCard("Product as placed", {seeThrough: true});
  const run = showRun(requests, product, cards);
  showRunning(true);
  const started = performance.now();
  await followAll(requests, product, controller.signal);
  running = null;
  showRunning(false);
  if (!product.status) run.remove();
  $("empty").hidden = $("runs").children.length > 0;
  const count = cards.filter(card => card.status === "done").length;
  const refused = cards.filter(card => card.status && card.status !== "done").length;
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  const end = controller.signal.aborted ? `Cancelled after ${seconds} s` : `${seconds} s`;
  tell(`${count} of ${counted(cards.length, "image")} made${refused ? `, ${refused} refused` : ""}. ${end}.`);
}

/** The first request finds the product's mask. The others start then; without a mask they do not start. */
async function followAll(requests, product, signal) {
  const cards = requests.flatMap(request => request.cards);
  const whenPlaced = Promise.withResolvers();
  const onUpdate = (kind, data) => {
    if (kind === "product" && !product.status) product.showProduct(data);
    if (kind === "product") whenPlaced.resolve(true);
    tell(`Making ${counted(cards.length, "image")}: ${cards.filter(card => card.status).length} ready.`);
  };
  tell("Finding the product.");
  const [first, ...others] = requests;
  const followed = follow(first, signal, onUpdate);
  const placed = await Promise.race([whenPlaced.promise, followed.then(() => product.status)]);
  if (placed) await Promise.all([followed, ...others.map(request => follow(request, signal, onUpdate))]);
  for (const card of [product, ...cards]) card.giveUp(signal.aborted ? "Cancelled" : "Not made");
}

/** One request from its fields to its cards. Its errors are shown, never thrown. */
async function follow({files, fields, cards}, signal, onUpdate) {
  const body = new FormData();
  for (const [name, value] of Object.entries({...files, ...fields})) body.append(name, value);
  const steps = Number(fields.num_inference_steps ?? options.num_inference_steps);
  body.append("preview_every", Math.max(1, Math.round(steps / NUM_PREVIEWS)));
  let problem = new Problem("The connection ended before all images arrived");
  try {
    const response = await call("v1/ads", {method: "POST", body, signal, headers: {Accept: "text/event-stream"}});
    for await (const [kind, data] of readEvents(response)) {
      if (kind === "done") problem = null;
      if (kind === "error") {
        const {error, status, retry_after_s: retryAfter} = data;
        problem = new Problem(error.message, {param: error.param, status, retryAfter});
      }
      if (kind === "step") cards[data.index].showStep(data);
      if (kind === "image") cards[data.index].showImage(data, curlCommand(files, fields, data));
      if (kind !== "step") onUpdate(kind, data);
    }
  } catch (error) {
    problem = error;
  }
  if (problem && !signal.aborted) showProblem(problem);
  for (const card of cards) card.giveUp(signal.aborted ? "Cancelled" : "Not made");
}

function showRun(requests, product, cards) {
  const {category = "product", scene, prompt, num_variants: _, ...others} = requests[0].fields;
  if (requests.length > 1) delete others.fusion_scale; // each card shows its own
  const title = [category, scene?.replaceAll("-", ", ") ?? prompt].join(": ");
  const run = h("section", {class: "run", "aria-label": title},
    h("h2", {}, title),
    h("p", {class: "hint"}, Object.entries(others).map(pair => pair.join(" ")).join(", ")),
    h("div", {class: "cards"}, product.element, h("div", {class: "made"}, ...cards.map(card => card.element))));
  $("empty").hidden = true;
  $("runs").prepend(run);
  for (const old of [...$("runs").children].slice(KEPT_RUNS)) {
    for (const link of old.querySelectorAll("[href^='blob:']")) URL.revokeObjectURL(link.href);
    old.remove();
  }
  if (matchMedia("(max-width: 899px)").matches) $("results").scrollIntoView();
  return run;
}

function showRunning(yes) {
  $("generate").setAttribute("aria-disabled", yes);
  $("results").setAttribute("aria-busy", yes);
  if (!yes && document.activeElement === $("cancel")) $("results").focus();
  $("cancel").hidden = !yes;
}

function tell(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

// ---- Cards: one for the product, one for each image. `status` is set once its picture is shown.
function makeCard(title, {seeThrough = false} = {}) {
  const channel = options.channels.find(({name}) => name === own("channel"));
  const [width, height] = channel ? [channel.width_px, channel.height_px] : (own("size") || options.default_size).split("x");
  const frame = h("div", {class: seeThrough ? "frame see-through" : "frame"}, h("p", {}, "Waiting"));
  frame.style.aspectRatio = `${width} / ${height}`;
  const text = h("div", {class: "text"}, h("h3", {}, title));
  const element = h("article", {class: "card", "aria-label": title}, frame, text);
  const progress = h("progress", {"aria-label": `Progress of ${title}`, max: 1, value: 0});
  const step = h("p", {class: "hint"});
  const describe = (...parts) => text.replaceChildren(text.firstChild, ...parts.filter(part => part));
  const show = (src, alt) => frame.replaceChildren(h("img", {src, alt, class: "fresh"}));
  const card = {element, status: null};

  card.showProduct = data => {
    card.status = "done";
    show(`data:image/webp;base64,${data.product_base64}`, "The product on its canvas; the checkerboard is outside its mask");
    const source = MASK_SOURCES[data.mask_source] ?? data.mask_source;
    describe(facts({Mask: source, Score: score(data.mask_score), Area: `${(100 * data.mask_area).toFixed(1)}% of the photograph`}));
  };
  card.showStep = data => {
    progress.max = data.num_steps;
    progress.value = data.step;
    step.textContent = `Step ${data.step} of ${data.num_steps}`;
    if (!progress.isConnected) describe(progress, step);
    if (data.preview_base64) show(`data:image/webp;base64,${data.preview_base64}`, `${title}, unfinished`);
  };
  card.showImage = (data, command) => {
    card.status = data.status;
    const known = facts({
      Seed: data.seed,
      Colour: score(data.color_similarity),
      Structure: score(data.structure_similarity),
      Local: score(data.local_similarity),
      Hue: score(data.hue_similarity),
      Attempts: data.attempts,
      ...(data.status === "done" && data.rung in RESCUED && {"Passed by": RESCUED[data.rung]}),
      Time: data.cached ? "0 s, cached" : `${data.generate_s.toFixed(1)} s`,
    });
    if (data.status !== "done") {
      frame.replaceChildren(h("p", {}, "Refused"));
      describe(h("p", {class: "refused"}, `${data.status}: ${data.reason}. ${data.detail}`), known);
      return;
    }
    const url = blobUrl(data.image_base64, `image/${data.format}`);
    frame.style.aspectRatio = `${data.width_px} / ${data.height_px}`; // the photograph's, where the product keeps its place
    show(url, `${title}: ${data.prompt}`);
    describe(known, makeButtons(title, data, url, command));
  };
  card.giveUp = why => {
    if (card.status) return;
    progress.remove();
    step.remove();
    frame.replaceChildren(h("p", {}, why));
  };
  return card;
}

function makeButtons(title, data, url, command) {
  const of = () => h("span", {class: "hidden"}, ` (${title})`);
  const buttons = h("div", {class: "buttons"},
    h("a", {class: "button", href: url, download: fileName(data)}, "Download", of()),
    h("button", {type: "button", click: () => copy(command, buttons)}, "Copy curl", of()),
    h("button", {type: "button", click: () => reuseSeed(data.seed)}, "Reuse seed", of()));
  return buttons;
}

const fileName = data => `${data.scene}-${data.seed}.${data.format.replace("jpeg", "jpg")}`;

async function copy(command, buttons) {
  try {
    await navigator.clipboard.writeText(command);
    tell("The curl command is copied.");
  } catch { // no permission, or no https: show the command, to copy by hand
    if (!buttons.nextSibling) buttons.after(h("textarea", {class: "command", readonly: true, "aria-label": "curl command"}, command));
    buttons.nextSibling.select();
  }
}

function reuseSeed(seed) {
  $("seed").value = seed;
  tell(`The next images start at seed ${seed}.`);
}

// ---- curl
const quoted = text => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
/** A file's name, quoted where curl would interpret , ; or ". */
const fileWord = name => (/[,;"\\]/.test(name) ? `"${name.replace(/[\\"]/g, "\\$&")}"` : name);

/** The command that makes this one image. It reads the token from a variable, so that it can be shared. */
function curlCommand(files, fields, data) {
  const {num_variants: _, ...sent} = {...fields, seed: data.seed};
  const words = ["curl --fail", quoted(new URL("v1/ads", location.href).href), `-H 'Accept: image/${data.format}'`];
  if ($("token").value.trim()) words.push('-H "Authorization: Bearer $REFADGEN_TOKEN"');
  for (const [name, file] of Object.entries(files)) words.push(`-F ${quoted(`${name}=@${fileWord(file.name)}`)}`);
  for (const [name, value] of Object.entries(sent)) {
    const flag = /^[\w{][^;]*$/.test(value) ? "-F" : "--form-string"; // after -F, curl interprets @ < ( " ;
    words.push(`${flag} ${quoted(`${name}=${value}`)}`);
  }
  return [...words, `-o ${quoted(fileName(data))}`].join(" \\\n  ");
}

// ---- Start
function dropped(event) {
  event.preventDefault();
  $("drop").classList.remove("over");
  usePhoto(event.dataTransfer.files[0]);
}

function start() {
  $("anchors").append(...ANCHORS.map(value =>
    h("input", {type: "radio", name: "anchor", value, "aria-label": value.replace("-", " "), title: value.replace("-", " ")})));
  for (const element of [...form.elements.anchor]) element.addEventListener("change", showLayout);
  for (const slider of [$("layout-size"), $("layout-margin")]) {
    slider.addEventListener("input", () => {
      slider.dataset.set = "yes";
      showLayout();
    });
  }
  $("as-photographed").addEventListener("change", showLayout);
  $("channel").addEventListener("change", () => {
    $("size").disabled = own("channel") !== "";
    if ($("size").disabled) $("size").value = ""; // the channel decides
  });
  $("layout-reset").addEventListener("click", resetLayout);
  $("category").addEventListener("change", () => {
    showScenes();
    findMaskAgain();
  });
  $("mask").addEventListener("change", findMask);
  $("scene").addEventListener("change", showPrompt);
  $("prompt").addEventListener("input", () => ($("scene").value = ""));
  for (const element of form.elements.mode) element.addEventListener("change", showMode);
  form.elements.image.addEventListener("change", event => usePhoto(event.target.files[0]));
  document.addEventListener("paste", event => usePhoto(event.clipboardData.files[0]));
  document.addEventListener("dragover", event => event.preventDefault());
  document.addEventListener("dragenter", () => $("drop").classList.add("over"));
  document.addEventListener("dragleave", event => $("drop").classList.toggle("over", event.relatedTarget !== null));
  document.addEventListener("drop", dropped);
  $("photo").addEventListener("load", () => ($("photo").hidden = false));
  $("photo").addEventListener("error", () => ($("photo").hidden = true)); // the server's answer will say why
  form.addEventListener("submit", event => {
    event.preventDefault();
    generate();
  });
  document.querySelector(".more").addEventListener("toggle", event => event.target.scrollIntoView({block: "nearest"}));
  $("cancel").addEventListener("click", () => running?.abort());
  $("token").value = sessionStorage.getItem("refadgen-token") ?? "";
  $("token").addEventListener("change", () => {
    sessionStorage.setItem("refadgen-token", $("token").value.trim());
    clearProblems();
    loadOptions();
    findMaskAgain();
  });
  showMode();
  showLayout();
  loadOptions();
}

start();
