// The mask before anything is made: the photograph, the product as the mask cuts it out, and a brush to correct it.
//
//   page.js: show(photo, answer of POST /v1/masks) ─► a person paints, flips, accepts ─► file(): the request's `mask`
//
// Keys and words are the batch job's (refadgen/generation/review.html); they act while the focus is in the card.

const VIEW_MOST_PX = 1024; // longest side of the canvases on the screen; the mask has its own size
const MOST_UNDO = 30;

const $ = id => document.getElementById(id);
const card = $("mask-card");
const panes = [...card.querySelectorAll(".pane")];
const layer = () => document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const mask = layer(); // white pixels whose alpha is the mask
const before = layer(); // the mask before the stroke at hand
const seen = layer(); // the photograph as the screen shows it: a large one takes too long to draw at each move
const cut = layer();

let answer = null; // of POST /v1/masks; null: no mask at hand
let proposed = null; // ImageData of the answer's mask
let undos = []; // {x, y, image}, or null for a flip
let forgotten = false; // whether older entries fell off `undos`
let accepted = false;
let tool = null; // "paint" or "erase"
let brush = 0.06; // diameter, as a share of the longer side
let cursor = null; // in the mask's pixels
let turns = 0; // of show and hide
let stroke = null; // what the stroke at hand has touched: {x0, y0, x1, y1}

// ---- What page.js asks for
/** Shows a mask. image: HTMLImageElement or null. found: the answer of POST /v1/masks. words: its source, for people. */
export async function show(image, found, words) {
  const turn = ++turns;
  const picture = found.mask_base64 && (await pictureOf(`data:image/png;base64,${found.mask_base64}`));
  if (turn !== turns) return; // another photograph came meanwhile
  answer = {...found, words};
  const shrink = Math.min(1, 2048 / Math.max(found.width_px, found.height_px)); // the server's own bound
  for (const {canvas} of [mask, before]) {
    canvas.width = picture ? picture.naturalWidth : Math.max(1, Math.round(found.width_px * shrink));
    canvas.height = picture ? picture.naturalHeight : Math.max(1, Math.round(found.height_px * shrink));
  }
  if (picture) mask.drawImage(picture, 0, 0);
  const factor = Math.min(1, VIEW_MOST_PX / Math.max(mask.canvas.width, mask.canvas.height));
  for (const side of ["width", "height"]) seen.canvas[side] = Math.max(1, Math.round(mask.canvas[side] * factor));
  seen.fillStyle = "#7c8188"; // where the browser cannot show the photograph
  if (image) seen.drawImage(image, 0, 0, seen.canvas.width, seen.canvas.height);
  else seen.fillRect(0, 0, seen.canvas.width, seen.canvas.height);
  eachPixel((values, i) => {
    values[i + 3] = values[i];
    values[i] = values[i + 1] = values[i + 2] = 255;
  }, Boolean(picture));
  proposed = whole();
  cursor = null;
  stroke = null;
  tool = null;
  takeBack(null);
  card.hidden = false;
  tell("");
  draw();
}

/** Forgets the mask: there is no photograph, or another one. */
export function hide() {
  turns++;
  answer = null;
  card.hidden = true;
}

/** Whether a person changed the mask. */
export const isEdited = () => answer !== null && (undos.length > 0 || forgotten);

/** The mask to send, a PNG; null: the server finds the same one by itself. */
export async function file() {
  if (!answer || !(isEdited() || (accepted && answer.reason))) return null;
  return new File([await png()], "mask.png", {type: "image/png"});
}

// ---- The mask
function pictureOf(address) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("the mask is not a picture"));
    image.src = address;
  });
}

const whole = () => mask.getImageData(0, 0, mask.canvas.width, mask.canvas.height);

function eachPixel(change, wanted = true) {
  if (!wanted) return;
  const image = whole();
  for (let i = 0; i < image.data.length; i += 4) change(image.data, i);
  mask.putImageData(image, 0, 0);
}

/** The mask as a PNG without transparency: the product is white. */
function png() {
  const {canvas} = layer();
  canvas.width = mask.canvas.width;
  canvas.height = mask.canvas.height;
  const pen = canvas.getContext("2d");
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(mask.canvas, 0, 0);
  return new Promise((resolve, reject) =>
    canvas.toBlob(blob => (blob ? resolve(blob) : reject(new Error("the mask cannot be encoded"))), "image/png"));
}

const invert = () => eachPixel((values, i) => {
  values[i] = values[i + 1] = values[i + 2] = 255;
  values[i + 3] = 255 - values[i + 3];
});

// ---- Decisions
function edited(words, entry) {
  if (entry !== undefined) undos.push(entry);
  if (undos.length > MOST_UNDO) {
    undos.shift();
    forgotten = true;
  }
  accepted = false;
  draw();
  tell(words);
}

function accept() {
  if (!whole().data.some((value, i) => i % 4 === 3 && value > 127)) return tell("The mask is empty: paint the product.");
  accepted = true;
  tell(answer.reason || isEdited() ? "Accepted: this mask is sent with the request." : "Accepted: the server finds the same mask again.");
}

function flip() {
  invert();
  edited("Flipped: product and backdrop have changed places.", null);
}

function empty() {
  const image = whole();
  mask.clearRect(0, 0, mask.canvas.width, mask.canvas.height);
  edited("Emptied: paint the product.", {x: 0, y: 0, image});
}

function undo() {
  if (!undos.length) return tell("Nothing to undo.");
  const last = undos.pop();
  if (last) mask.putImageData(last.image, last.x, last.y);
  else invert();
  edited("Undone.");
}

function takeBack(words = "Taken back: the mask is the server's.") {
  mask.putImageData(proposed, 0, 0);
  undos = [];
  forgotten = accepted = false;
  if (words === null) return;
  draw();
  tell(words);
}

async function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await png());
  link.download = "mask.png";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// ---- The brush
const radius = () => Math.max(0.75, (brush * Math.max(mask.canvas.width, mask.canvas.height)) / 2);

function choose(wanted) {
  tool = tool === wanted ? null : wanted;
  cursor ??= {x: mask.canvas.width / 2, y: mask.canvas.height / 2};
  draw();
  tell(tool ? `${tool === "erase" ? "Erase" : "Paint"}: drag over either picture, or use arrow keys and Space.` : "Painting is off.");
  if (tool) $("mask-product-pane").focus({preventScroll: true});
}

function resize(factor) {
  brush = Math.min(0.4, Math.max(0.004, brush * factor));
  draw();
  tell();
}

function begin() {
  before.clearRect(0, 0, before.canvas.width, before.canvas.height);
  before.drawImage(mask.canvas, 0, 0);
  stroke = {x0: Infinity, y0: Infinity, x1: -Infinity, y1: -Infinity};
}

function dab(from, to) {
  const r = radius();
  mask.globalCompositeOperation = tool === "erase" ? "destination-out" : "source-over";
  mask.strokeStyle = mask.fillStyle = "#fff";
  mask.lineWidth = 2 * r;
  mask.lineCap = "round";
  mask.beginPath();
  mask.arc(to.x, to.y, r, 0, 2 * Math.PI);
  mask.fill();
  mask.beginPath();
  mask.moveTo(from.x, from.y);
  mask.lineTo(to.x, to.y);
  mask.stroke();
  mask.globalCompositeOperation = "source-over";
  for (const {x, y} of [from, to]) {
    stroke.x0 = Math.min(stroke.x0, x - r - 2);
    stroke.y0 = Math.min(stroke.y0, y - r - 2);
    stroke.x1 = Math.max(stroke.x1, x + r + 2);
    stroke.y1 = Math.max(stroke.y1, y + r + 2);
  }
  draw();
}

function end() {
  if (!stroke) return;
  const x = Math.max(0, Math.floor(stroke.x0));
  const y = Math.max(0, Math.floor(stroke.y0));
  const width = Math.min(mask.canvas.width, Math.ceil(stroke.x1)) - x;
  const height = Math.min(mask.canvas.height, Math.ceil(stroke.y1)) - y;
  stroke = null;
  if (width > 0 && height > 0) edited(tool === "erase" ? "Erased." : "Painted.", {x, y, image: before.getImageData(x, y, width, height)});
}

function dabHere() {
  begin();
  dab(cursor, cursor);
  end();
}

function move(key, {shiftKey, altKey}) {
  const step = altKey ? 1 : Math.max(1, radius() / 2);
  const [dx, dy] = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[key];
  cursor = {
    x: Math.min(mask.canvas.width, Math.max(0, cursor.x + dx * step)),
    y: Math.min(mask.canvas.height, Math.max(0, cursor.y + dy * step)),
  };
  if (shiftKey) dabHere();
  else draw();
}

// ---- On the screen
/** What the status says; the badge and the buttons follow what is at hand. words: undefined leaves the status. */
function tell(words) {
  const {words: source, mask_score: score, reason, detail} = answer;
  const state = isEdited() ? (accepted ? "painted and accepted" : "painted") : accepted ? "accepted" : reason ? "doubtful" : "found";
  $("mask-state").textContent = state;
  $("mask-state").dataset.state = reason && !accepted && !isEdited() ? "doubtful" : "fine";
  $("mask-why").textContent = reason ? `${reason}: ${detail}` : "";
  $("mask-source").textContent = source ? `${source}, score ${score.toFixed(3)}` : "no proposal: paint the product";
  for (const name of ["paint", "erase"]) $(`mask-${name}`).setAttribute("aria-pressed", tool === name);
  $("mask-size").textContent = `${Math.round(2 * radius())} px`;
  $("mask-undo").setAttribute("aria-disabled", undos.length === 0);
  card.classList.toggle("painting", tool !== null);
  if (words !== undefined) $("mask-status").textContent = words;
}

function draw() {
  const size = [seen.canvas.width, seen.canvas.height];
  const clean = pen => {
    if (pen.canvas.width !== size[0] || pen.canvas.height !== size[1]) [pen.canvas.width, pen.canvas.height] = size;
    pen.globalCompositeOperation = "source-over";
    pen.clearRect(0, 0, ...size);
    return pen;
  };
  clean(cut).drawImage(seen.canvas, 0, 0);
  cut.globalCompositeOperation = "destination-in";
  cut.drawImage(mask.canvas, 0, 0, ...size);
  const [photograph, product] = panes.map(pane => clean(pane.querySelector("canvas").getContext("2d")));
  photograph.drawImage(seen.canvas, 0, 0);
  if (tool) { // what can be painted
    product.globalAlpha = 0.35;
    product.drawImage(seen.canvas, 0, 0);
    product.globalAlpha = 1;
  }
  product.drawImage(cut.canvas, 0, 0);
  for (const pane of panes) showRing(pane);
}

function showRing(pane) {
  const ring = pane.querySelector(".ring");
  const canvas = pane.querySelector("canvas");
  ring.hidden = !tool || !cursor;
  const scale = canvas.clientWidth / mask.canvas.width;
  const size = 2 * radius() * scale;
  // Through the style object: the page's policy allows no style attributes.
  Object.assign(ring.style, {
    width: `${size}px`,
    height: `${size}px`,
    left: `${canvas.offsetLeft + cursor?.x * scale - size / 2}px`,
    top: `${canvas.offsetTop + cursor?.y * scale - size / 2}px`,
  });
}

function pointOf(event) {
  const box = event.currentTarget.querySelector("canvas").getBoundingClientRect();
  return {
    x: ((event.clientX - box.left) / box.width) * mask.canvas.width,
    y: ((event.clientY - box.top) / box.height) * mask.canvas.height,
  };
}

// ---- Mouse, touch and keys
const ACTIONS = {
  accept: [["a"], accept],
  paint: [["p"], () => choose("paint")],
  erase: [["e"], () => choose("erase")],
  smaller: [["["], () => resize(1 / 1.3)],
  larger: [["]"], () => resize(1.3)],
  flip: [["f"], flip],
  undo: [["u", "z"], undo],
  empty: [["x"], empty],
  back: [["c"], () => takeBack()],
  save: [["s"], save],
};

function pressed(event) {
  if (stroke) return; // a change in the middle of a stroke could not be undone in order
  if (event.target.matches("input, select, textarea")) return;
  const inPane = event.target.matches(".pane");
  if (inPane && tool && event.key.startsWith("Arrow")) move(event.key, event);
  else if (inPane && tool && event.key === " ") dabHere();
  else {
    const undoing = event.ctrlKey || event.metaKey;
    if (event.altKey || (undoing && event.key !== "z")) return;
    const [, action] = Object.values(ACTIONS).find(([keys]) => keys.includes(event.key.toLowerCase())) ?? [];
    if (!action) return;
    action();
  }
  event.preventDefault();
}

for (const [name, [, action]] of Object.entries(ACTIONS)) $(`mask-${name}`).addEventListener("click", () => stroke || action());
card.addEventListener("keydown", pressed);
for (const pane of panes) {
  pane.addEventListener("pointerdown", event => {
    if (!tool || event.button !== 0 || stroke) return;
    event.preventDefault();
    pane.setPointerCapture(event.pointerId);
    cursor = pointOf(event);
    begin();
    dab(cursor, cursor);
  });
  pane.addEventListener("pointermove", event => {
    if (!tool) return;
    const point = pointOf(event);
    if (stroke && pane.hasPointerCapture(event.pointerId)) dab(cursor, point);
    if (!stroke || pane.hasPointerCapture(event.pointerId)) cursor = point;
    draw();
  });
  // Not another finger's.
  for (const kind of ["pointerup", "pointercancel"]) pane.addEventListener(kind, event => pane.hasPointerCapture(event.pointerId) && end());
}
addEventListener("resize", () => answer && draw());
