// The page: its state, what follows from it on the screen, and what mouse and keys do to it.

import { Loader } from "./loader.js";
import { distanceMm, ellipse } from "./measure.js";
import { clear, grey, Painter, signed, subtract } from "./paint.js";
import { Panel } from "./panel.js";

const BLINK_MS = 600;
const KEPT_BYTES = 384 << 20;
const LEAST_ZOOM = 0.5;
const MOST_ZOOM = 64;
const WHEEL_STEP = 40; // of a touchpad's many small events
const OVERLAY_KINDS = { refined: "steps", levels: "steps", uncertainty: "above", residual: "signed" };

const $ = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const facts = await (await fetch("facts.json")).json();
const compares = "bicubic" in facts.layers;
const layouts = compares
  ? { compare: "side by side", swipe: "swipe", blink: "blink" }
  : { alone: "enhanced alone" };
const overlays = ["none", ...Object.keys(facts.overlays)];
const tools = { pan: "pan", window: "window", distance: "distance", ellipse: "ROI" };

const state = {
  axis: "axial",
  index: Object.fromEntries(
    Object.entries(facts.views).map(([axis, view]) => [axis, Math.floor(view.count / 2)]),
  ),
  layout: Object.keys(layouts)[0],
  preset: "model",
  center: facts.windows.model[0],
  width: facts.windows.model[1],
  overlay: "none",
  limits: { uncertainty: null, residual: null }, // of the first slice that is looked at
  strength: 0.5,
  difference: facts.difference_hu,
  tool: "pan",
  split: 0.5,
  isBlinked: false,
  smooth: false,
  views: {},
  cursor: null,
  started: null, // first point of a measurement
  measures: [],
};

const loader = new Loader(KEPT_BYTES);
const painter = new Painter();
let panels = [];
let shown = null; // { axis, index, images } on the screen
let busy = false;
let direction = 1;
let blinking = null;

const view = () => facts.views[state.axis];
const look = () => state.views[state.axis] ?? resetLook();

function resetLook() {
  const [height, width] = view().size_mm;
  state.views[state.axis] = { zoom: 1, x: width / 2, y: height / 2 };
  return state.views[state.axis];
}

// --- what is shown -----------------------------------------------------------------------------

function wanted() {
  const names = ["enhanced", "refined"];
  if (compares) names.push("bicubic");
  if (state.overlay !== "none" && state.overlay !== "refined") names.push(state.overlay);
  return names;
}

// A round limit in HU that nearly all values stay below.
function limitFor({ values }) {
  const sizes = Float32Array.from(values, Math.abs).filter((size) => size === size).sort();
  const high = Math.max(5, sizes[Math.floor(0.995 * (sizes.length - 1))] ?? 0);
  const power = 10 ** Math.floor(Math.log10(high));
  return power * [1, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= high);
}

async function load(axis, index, names) {
  const images = await Promise.all(names.map((name) => loader.get(name, axis, index)));
  return { axis, index, images: Object.fromEntries(names.map((name, k) => [name, images[k]])) };
}

function isCurrent() {
  return shown && shown.axis === state.axis && shown.index === state.index[state.axis]
    && wanted().every((name) => name in shown.images);
}

// Load what the state asks for, skip what was asked for meanwhile, draw.
async function refresh() {
  draw();
  if (busy || isCurrent()) return;
  busy = true;
  try {
    while (!isCurrent()) {
      const slow = setTimeout(() => say("loading …"), 300);
      try {
        shown = await load(state.axis, state.index[state.axis], wanted());
        const { [state.overlay]: overlay } = shown.images;
        if (overlay && state.limits[state.overlay] === null) {
          state.limits[state.overlay] = limitFor(overlay);
        }
        say("");
      } finally {
        clearTimeout(slow);
      }
      draw();
    }
  } catch (error) {
    say(error.message);
    return;
  } finally {
    busy = false;
  }
  prefetch(shown);
}

async function prefetch(from) {
  for (const step of [direction, 2 * direction, 3 * direction, -direction]) {
    const index = from.index + step;
    if (index < 0 || index >= facts.views[from.axis].count) continue;
    if (busy || shown !== from) return;
    try {
      await load(from.axis, index, wanted());
    } catch {
      return; // it is said when the slice itself is asked for
    }
  }
}

function say(text) {
  $("message").textContent = text;
}

function arrange() {
  const names = { compare: ["source", "enhanced", "difference"], alone: ["enhanced"] };
  const list = names[state.layout] ?? ["pair"];
  if (panels.map((panel) => panel.name).join() !== list.join()) {
    $("stage").replaceChildren();
    panels = list.map((name) => listen(new Panel($("stage"), name)));
  }
  clearInterval(blinking);
  state.isBlinked = false;
  if (state.layout === "blink") {
    blinking = setInterval(() => {
      state.isBlinked = !state.isBlinked;
      draw();
    }, BLINK_MS);
  }
}

function draw() {
  controls();
  if (!shown || shown.axis !== state.axis) return;
  for (const panel of panels) {
    panel.fit();
    panel.look(view().size_mm, look());
    picture(panel);
  }
  marks();
  readout();
  Object.assign($("stage").dataset, {
    shown: isCurrent() ? `${shown.axis}/${shown.index}` : "",
    overlay: state.overlay,
  });
}

function key(...parts) {
  return [shown.axis, shown.index, ...parts].join("|");
}

// A layer as a panel can show it: no finer than the screen. Its key tells slice and size.
function fitted(panel, name) {
  const pixel = pixelMm(name);
  const blocks = OVERLAY_KINDS[name] === "steps" ? [1, 1] : panel.crowding(pixel);
  const its = key(name, ...blocks);
  const image = painter.reduce(name, its, shown.images[name], blocks);
  return { image, key: its, pixel: pixel.map((side, k) => side * blocks[k]) };
}

function drawGrey(panel, context, name, options) {
  const { image, key, pixel } = fitted(panel, name);
  const [low, high] = [state.center - state.width / 2, state.center + state.width / 2];
  const bitmap = painter.paint(name, [key, low, high].join(), image, grey(image, low, high));
  panel.draw(context, bitmap, pixel, options);
}

function drawDifference(panel, context, options) {
  const [enhanced, bicubic] = [fitted(panel, "enhanced"), fitted(panel, "bicubic")];
  const fill = (out) => {
    const { values } = subtract(enhanced.image, bicubic.image);
    signed(values, facts.colors.difference, state.difference)(out);
  };
  const its = [enhanced.key, state.difference].join();
  panel.draw(context, painter.paint("difference", its, enhanced.image, fill), enhanced.pixel, options);
}

function drawOverlay(panel, context, options) {
  if (!shown.images[state.overlay]) return;
  const { image, key, pixel } = fitted(panel, state.overlay);
  const limit = state.limits[state.overlay];
  const fill = clear(image, facts.colors[state.overlay], OVERLAY_KINDS[state.overlay], limit);
  panel.draw(context, painter.paint("overlay", [key, limit].join(), image, fill), pixel, options);
}

// Height and width of a layer's pixels: coarser in a slice, the output's columns in a plane.
function pixelMm(name) {
  const cell = shown.axis === "axial" ? facts.layers[name] : 1;
  return view().pixel_mm.map((side) => side * cell);
}

function picture(panel) {
  const context = panel.clear();
  const options = { smooth: state.smooth };
  const splitPx = state.layout === "swipe" ? state.split * panel.width : 0;
  const showsSource = panel.name === "source" || state.layout === "swipe" || state.isBlinked;
  const showsEnhanced = panel.name === "enhanced" || (panel.name === "pair" && !state.isBlinked);
  if (showsSource) drawGrey(panel, context, "bicubic", options);
  if (showsEnhanced && splitPx < panel.width) {
    drawGrey(panel, context, "enhanced", { ...options, from: splitPx });
    drawOverlay(panel, context, { alpha: state.strength, from: splitPx });
  }
  if (panel.name === "difference") drawDifference(panel, context, options);
  if (state.layout === "swipe") panel.divide(context, splitPx);
  const source = `source, bicubic x${facts.upscale}`;
  panel.caption.textContent = {
    source,
    enhanced: "enhanced",
    difference: "enhanced minus source",
    pair: state.layout === "swipe" ? `${source} | enhanced` : state.isBlinked ? source : "enhanced",
  }[panel.name];
  panel.label(context, view().letters, showsSource && !showsEnhanced ? "" : facts.mark);
  panel.root.dataset.showsSource = showsSource;
}

// --- measuring and reading ---------------------------------------------------------------------

function here(measure) {
  return measure.axis === state.axis && measure.index === state.index[state.axis];
}

function marks() {
  const found = state.measures.filter((measure) => here(measure) || measure === state.started);
  for (const panel of panels) panel.mark(found, state.cursor);
}

function describe(measure) {
  if (measure.kind === "distance") {
    const length = distanceMm(measure.a, measure.b);
    measure.short = `${length.toFixed(2)} mm`;
    return { text: `distance ${length.toFixed(2)} mm`, data: { mm: length } };
  }
  const data = {};
  const parts = [];
  for (const [layer, name] of [["bicubic", "source"], ["enhanced", "enhanced"]]) {
    if (!(layer in shown.images)) continue;
    const found = ellipse(shown.images[layer], pixelMm(layer), measure.a, measure.b);
    if (!parts.length) {
      parts.push(`ROI ${found.areaMm2.toFixed(1)} mm², ${found.count} pixels`);
      measure.short = `${found.areaMm2.toFixed(1)} mm²`;
      Object.assign(data, { area: found.areaMm2, count: found.count });
    }
    parts.push(`${name} ${found.mean.toFixed(1)} ± ${found.deviation.toFixed(1)} HU`);
    Object.assign(data, { [`${name}Mean`]: found.mean, [`${name}Sd`]: found.deviation });
  }
  return { text: parts.join("; "), data };
}

function listMeasures() {
  if (!isCurrent()) return;
  $("measures").replaceChildren(...state.measures.filter(here).map((measure) => {
    const { text, data } = describe(measure);
    const item = document.createElement("li");
    item.textContent = text;
    Object.assign(item.dataset, { kind: measure.kind, ...data });
    return item;
  }));
  marks();
}

function start(point) {
  state.started = { kind: state.tool, axis: state.axis, index: state.index[state.axis], a: point, b: point };
  state.measures.push(state.started);
}

function extend(point) {
  if (!state.started) return;
  state.started.b = point;
  describe(state.started);
}

function finish() {
  const done = state.started;
  state.started = null;
  if (done && distanceMm(done.a, done.b) === 0) state.measures.pop();
  listMeasures();
}

function dropMeasures(keep) {
  state.started = null;
  state.measures = keep(state.measures);
  listMeasures();
}

function valueAt(name, [x, y]) {
  const image = shown?.images[name];
  if (!image) return null;
  const [pixelY, pixelX] = pixelMm(name);
  const [row, column] = [Math.floor(y / pixelY), Math.floor(x / pixelX)];
  if (row < 0 || column < 0 || row >= image.rows || column >= image.columns) return null;
  const value = image.values[row * image.columns + column];
  return Number.isNaN(value) ? null : value;
}

function put(id, value, text) {
  $(id).textContent = value === null ? "–" : text(value);
  $(id).dataset.value = value ?? "";
}

function readout() {
  const at = state.cursor;
  const [height, width] = view().size_mm;
  const inside = at && isCurrent() && at[0] >= 0 && at[1] >= 0 && at[0] < width && at[1] < height;
  const read = (name) => (inside ? valueAt(name, at) : null);
  const hu = (value) => `${Number(value.toFixed(1))} HU`;
  const [source, enhanced] = [read("bicubic"), read("enhanced")];
  const [pixelY, pixelX] = view().pixel_mm;
  $("at").textContent = inside
    ? `column ${Math.floor(at[0] / pixelX) + 1}, row ${Math.floor(at[1] / pixelY) + 1}` : "–";
  put("hu-source", source, hu);
  put("hu-enhanced", enhanced, hu);
  const both = source !== null && enhanced !== null;
  put("hu-difference", both ? enhanced - source : null, (v) => (v > 0 ? "+" : "") + hu(v));
  put("is-refined", read("refined"), (v) => (v ? "yes" : "no"));
  const others = state.overlay !== "none" && state.overlay !== "refined";
  $("overlay-readout").classList.toggle("hidden", !others);
  if (!others) return;
  $("overlay-readout").firstElementChild.textContent = facts.overlays[state.overlay];
  put("overlay-value", read(state.overlay), (v) =>
    state.overlay === "levels" ? `${v} of ${facts.num_levels}` : hu(v));
}

// --- controls ----------------------------------------------------------------------------------

function buttons(id, choices, choose) {
  for (const [name, text] of Object.entries(choices)) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: text, onclick: () => choose(name) });
    button.dataset.choice = name;
    $(id).append(button);
  }
}

function press(id, chosen) {
  for (const button of $(id).children) {
    button.setAttribute("aria-pressed", button.dataset.choice === chosen);
  }
}

function options(id, choices) {
  for (const [value, text] of Object.entries(choices)) $(id).append(new Option(text, value));
}

function setValue(id, value) {
  const rounded = typeof value === "number" ? Number(value.toFixed(2)) : value;
  if ($(id) !== document.activeElement || $(id).type !== "number") $(id).value = rounded;
}

function controls() {
  const { count } = view();
  const index = state.index[state.axis];
  $("place").textContent = (compares ? "" : "no source: give --source to compare · ")
    + `${state.axis} ${index + 1} of ${count} · series ${facts.label} · pixels `
    + `${view().pixel_mm.map((side) => Number(side.toPrecision(3))).join(" × ")} mm · refined `
    + `${Math.round(100 * facts.share_refined)} % of the series`;
  press("axes", state.axis);
  press("layouts", state.layout);
  press("tools", state.tool);
  $("slice").max = count;
  setValue("slice", index + 1);
  setValue("split", state.split);
  $("split").parentElement.classList.toggle("hidden", state.layout !== "swipe");
  setValue("preset", state.preset);
  setValue("center", state.center);
  setValue("width", state.width);
  setValue("overlay", state.overlay);
  setValue("strength", state.strength);
  setValue("difference", state.difference);
  $("smooth").checked = state.smooth;
  const hasLimit = Boolean(state.limits[state.overlay]);
  $("limit").parentElement.classList.toggle("hidden", !hasLimit);
  if (hasLimit) setValue("limit", state.limits[state.overlay]);
  bar("difference-bar", facts.colors.difference, signedTicks(state.difference));
  bar("overlay-bar", facts.colors[state.overlay], {
    refined: ["synthesised"],
    levels: facts.colors.levels.map((_, k) => `${k + 1}`),
    uncertainty: ["0", `${state.limits.uncertainty ?? "…"} HU`],
    residual: signedTicks(state.limits.residual ?? "…"),
  }[state.overlay]);
}

function signedTicks(limit) {
  return [`−${limit} HU`, "0", `+${limit} HU`];
}

function bar(id, palette, ticks) {
  const label = palette ? ticks.join(" ") : "";
  if ($(id).dataset.label === label) return;
  $(id).dataset.label = label;
  $(id).replaceChildren();
  if (!palette) return;
  const canvas = $(id).appendChild(document.createElement("canvas"));
  [canvas.width, canvas.height] = [palette.length, 1];
  const context = canvas.getContext("2d");
  palette.forEach(([r, g, b], k) => {
    context.fillStyle = `rgb(${r} ${g} ${b})`;
    context.fillRect(k, 0, 1, 1);
  });
  const line = $(id).appendChild(document.createElement("p"));
  line.append(...ticks.map((tick) => Object.assign(document.createElement("span"), { textContent: tick })));
}

function chooseAxis(axis) {
  if (!(axis in facts.views)) return;
  state.axis = axis;
  state.cursor = null;
  update();
}

function chooseLayout(layout) {
  if (!(layout in layouts)) return;
  state.layout = layout;
  arrange();
  update();
}

function chooseTool(tool) {
  state.tool = tool;
  update();
}

function choosePreset(name) {
  state.preset = name;
  if (name in facts.windows) [state.center, state.width] = facts.windows[name];
  update();
}

function freeWindow(center, width) {
  if (!Number.isFinite(center) || !(width >= 1)) return;
  Object.assign(state, { preset: "free", center, width });
  update();
}

function chooseOverlay(name) {
  state.overlay = name;
  update();
}

function toSlice(index) {
  const next = clamp(Math.round(index), 0, view().count - 1);
  direction = next < state.index[state.axis] ? -1 : 1;
  state.index[state.axis] = next;
  update();
}

function zoom(factor, point) {
  const now = look();
  const next = clamp(now.zoom * factor, LEAST_ZOOM, MOST_ZOOM);
  const share = now.zoom / next; // the point stays where it is on the screen
  if (point) [now.x, now.y] = [point[0] + (now.x - point[0]) * share, point[1] + (now.y - point[1]) * share];
  now.zoom = next;
  update();
}

function pan(dx, dy) {
  const now = look();
  const [height, width] = view().size_mm;
  now.x = clamp(now.x + dx, 0, width);
  now.y = clamp(now.y + dy, 0, height);
  update();
}

function moveCursor(dx, dy) {
  const [pixelY, pixelX] = view().pixel_mm;
  const [height, width] = view().size_mm;
  const centred = (mm, pixel) => (Math.floor(mm / pixel) + 0.5) * pixel;
  const [x, y] = state.cursor ?? [width / 2, height / 2];
  state.cursor = [
    clamp(centred(x, pixelX) + dx * pixelX, pixelX / 2, width - pixelX / 2),
    clamp(centred(y, pixelY) + dy * pixelY, pixelY / 2, height - pixelY / 2),
  ];
  extend(state.cursor);
  marks();
  readout();
}

let due = false;

// Everything on the screen follows from the state, once per frame.
function update() {
  $("stage").dataset.shown = "";
  if (due) return;
  due = true;
  requestAnimationFrame(async () => {
    due = false;
    await refresh();
    listMeasures();
  });
}

// --- mouse -------------------------------------------------------------------------------------

function listen(panel) {
  let drag = null;
  let wheeled = 0;
  const canvas = panel.marks;
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (event.ctrlKey || event.metaKey) {
      zoom(1.0015 ** -event.deltaY, panel.toMm(place(event)));
      return;
    }
    wheeled += event.deltaMode === 0 ? event.deltaY : event.deltaY * WHEEL_STEP;
    const steps = Math.trunc(wheeled / WHEEL_STEP);
    if (!steps) return;
    wheeled = 0;
    toSlice(state.index[state.axis] + Math.sign(steps));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    $("stage").focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    const at = place(event);
    const onLine = state.layout === "swipe" && Math.abs(at[0] - state.split * panel.width) < 8;
    const kind = event.button === 2 ? "window" : event.button === 1 ? "pan" : onLine ? "split" : state.tool;
    drag = { kind, at };
    if (kind === "distance" || kind === "ellipse") start(panel.toMm(at));
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    const at = place(event);
    state.cursor = panel.toMm(at);
    if (drag) {
      const [dx, dy] = [at[0] - drag.at[0], at[1] - drag.at[1]];
      drag.at = at;
      if (drag.kind === "pan") pan(-dx / panel.scale, -dy / panel.scale);
      if (drag.kind === "window") {
        const step = Math.max(1, state.width / 300);
        freeWindow(state.center + dy * step, Math.max(1, state.width + dx * step));
      }
      if (drag.kind === "split") {
        state.split = clamp(at[0] / panel.width, 0, 1);
        update();
      }
      extend(state.cursor);
    }
    marks();
    readout();
  });
  const end = () => {
    if (drag && (drag.kind === "distance" || drag.kind === "ellipse")) finish();
    drag = null;
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("pointerleave", () => {
    if (drag) return;
    state.cursor = null;
    marks();
    readout();
  });
  return panel;
}

// --- keys --------------------------------------------------------------------------------------

const ARROWS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };

function enter() {
  if (state.tool !== "distance" && state.tool !== "ellipse") return;
  if (!state.cursor) moveCursor(0, 0);
  if (state.started) finish();
  else start(state.cursor);
  marks();
}

function step(amount) {
  toSlice(state.index[state.axis] + amount);
}

const KEYS = {
  ArrowUp: () => step(-1),
  ArrowDown: () => step(1),
  PageUp: () => step(-10),
  PageDown: () => step(10),
  Home: () => toSlice(0),
  End: () => toSlice(view().count - 1),
  a: () => chooseAxis("axial"),
  c: () => chooseAxis("coronal"),
  s: () => chooseAxis("sagittal"),
  l: () => chooseLayout("compare"),
  x: () => chooseLayout("swipe"),
  b: () => chooseLayout("blink"),
  p: () => chooseTool("pan"),
  w: () => chooseTool("window"),
  d: () => chooseTool("distance"),
  r: () => chooseTool("ellipse"),
  o: () => chooseOverlay(overlays[(overlays.indexOf(state.overlay) + 1) % overlays.length]),
  0: () => { resetLook(); update(); },
  "+": () => zoom(1.25),
  "=": () => zoom(1.25),
  "-": () => zoom(0.8),
  "[": () => { state.split = clamp(state.split - 0.05, 0, 1); update(); },
  "]": () => { state.split = clamp(state.split + 0.05, 0, 1); update(); },
  " ": () => {
    if (state.layout !== "blink") return;
    clearInterval(blinking); // from here on by hand
    state.isBlinked = !state.isBlinked;
    draw();
  },
  Enter: enter,
  Delete: () => dropMeasures((all) => all.slice(0, -1)),
  Escape: () => dropMeasures((all) => (state.started ? all.slice(0, -1) : all)),
};
Object.keys(facts.windows).forEach((name, k) => { KEYS[k + 1] = () => choosePreset(name); });

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea");
  const onButton = event.target.closest("button, summary") && (event.key === " " || event.key === "Enter");
  if (typing || onButton || event.ctrlKey || event.metaKey) return;
  const arrow = ARROWS[event.key];
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (arrow && event.shiftKey) moveCursor(...arrow);
  else if (arrow && event.altKey) pan(...arrow.map((way) => (way * view().size_mm[1]) / 20 / look().zoom));
  else if (KEYS[name]) KEYS[name]();
  else return;
  event.preventDefault();
});

// --- rating ------------------------------------------------------------------------------------

function ratingForm() {
  if (!facts.rating.length) return;
  $("rating").hidden = false;
  for (const name of facts.rating) {
    const line = $("scores").appendChild(document.createElement("div"));
    line.append(name);
    const group = line.appendChild(document.createElement("span"));
    for (let score = 1; score <= 5; score++) {
      const label = group.appendChild(document.createElement("label"));
      const input = Object.assign(document.createElement("input"), { type: "radio", name, value: score });
      label.append(input, `${score}`);
    }
  }
  const form = $("rating").querySelector("form");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const sent = Object.fromEntries(new FormData(form));
    for (const name of facts.rating) sent[name] = sent[name] ? Number(sent[name]) : null;
    Object.assign(sent, { slice_number: state.index.axial + 1, window: state.preset });
    try {
      const answer = await fetch("rating", { method: "POST", body: JSON.stringify(sent) });
      $("saved").textContent = answer.ok ? (await answer.json()).saved : await answer.text();
      if (!answer.ok) return;
    } catch {
      $("saved").textContent = "not saved: the review is no longer served";
      return;
    }
    for (const input of form.querySelectorAll("input[type=radio]")) input.checked = false;
    form.elements.comment.value = "";
  });
}

// --- beginning ---------------------------------------------------------------------------------

$("notice").textContent = facts.notice;
document.body.classList.toggle("alone", !compares);
buttons("axes", Object.fromEntries(Object.keys(facts.views).map((axis) => [axis, axis])), chooseAxis);
buttons("layouts", layouts, chooseLayout);
buttons("tools", tools, chooseTool);
options("preset", Object.fromEntries([...Object.keys(facts.windows), "free"].map((name) => [name, name])));
options("overlay", { none: "none", ...facts.overlays });
const number = (id, use) => $(id).addEventListener("input", () => {
  const value = $(id).valueAsNumber;
  if (Number.isFinite(value)) use(value);
});
number("slice", (value) => toSlice(value - 1));
number("split", (value) => { state.split = value; update(); });
number("center", (value) => freeWindow(value, state.width));
number("width", (value) => freeWindow(state.center, value));
number("strength", (value) => { state.strength = value; update(); });
number("difference", (value) => { if (value >= 1) state.difference = value; update(); });
number("limit", (value) => { if (value >= 1) state.limits[state.overlay] = value; update(); });
$("preset").addEventListener("change", () => choosePreset($("preset").value));
$("overlay").addEventListener("change", () => chooseOverlay($("overlay").value));
$("smooth").addEventListener("change", () => { state.smooth = $("smooth").checked; update(); });
$("clear").addEventListener("click", () => dropMeasures(() => []));
ratingForm();
arrange();
new ResizeObserver(() => update()).observe($("stage"));
// For who drives the page: where a point in mm lies on the screen, and what is set.
window.review = {
  state,
  facts,
  toClient(name, point) {
    const panel = panels.find((one) => one.name === name);
    const box = panel.marks.getBoundingClientRect();
    const [x, y] = panel.toPx(point);
    return [box.left + x, box.top + y];
  },
};
update();
