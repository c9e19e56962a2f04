// A reader's page: two pictures of one case side by side, and what the reader says of them.

import { Loader } from "./loader.js";
import { grey, Painter } from "./paint.js";
import { Panel } from "./panel.js";

const KEPT_BYTES = 256 << 20;
const [LEAST_ZOOM, MOST_ZOOM, WHEEL_STEP] = [0.5, 64, 40];
const WINDOW_KEYS = { w: "wide", l: "lung", s: "soft tissue", b: "bone", r: "brain", d: "subdural" };
const MEANINGS = {
  sharpness: ["Sharpness", "1 blurred … 5 sharp"],
  noise: ["Noise", "1 hides anatomy … 5 does not disturb"],
  artefacts: ["Artefacts", "1 misleading … 5 none seen"],
  confidence: ["Diagnostic confidence", "1 none … 5 full"],
};
const ARROWS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };

const $ = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const loader = new Loader(KEPT_BYTES);
const painter = new Painter();
const form = $("form");

let due = await (await fetch("state.json")).json(); // the pair that is asked for
const items = due.scores.flatMap((score) => due.sides.map((side) => `${score}_${side}`));
const look = { zoom: 1, x: 0, y: 0, slice: 0, window: "wide", center: 0, width: 2000 };
let shown = null; // { trial, slice, images } on the screen
let marked = "preference"; // the question that keys answer
let saving = false;

// --- the clock: runs while a pair is to be seen --------------------------------------------------

const clock = { seconds: 0, since: null };

function setClock() {
  const runs = shown?.trial === due.trial && $("curtain").hidden && !document.hidden;
  if (runs && clock.since === null) clock.since = performance.now();
  if (!runs && clock.since !== null) {
    clock.seconds += (performance.now() - clock.since) / 1000;
    clock.since = null;
  }
}

function secondsNow() {
  return clock.seconds + (clock.since === null ? 0 : (performance.now() - clock.since) / 1000);
}

function keepClock() { // a page that is loaded again goes on counting
  sessionStorage.setItem(location.pathname, JSON.stringify([due.trial, secondsNow()]));
}

function startClock() {
  const [trial, seconds] = JSON.parse(sessionStorage.getItem(location.pathname) ?? "[0, 0]");
  Object.assign(clock, { seconds: trial === due.trial ? seconds : 0, since: null });
}

// --- pictures ----------------------------------------------------------------------------------

const panels = due.sides.map((side) => listen(new Panel($("stage"), side)));

function resetLook() {
  const [height, width] = due.size_mm;
  Object.assign(look, { zoom: 1, x: width / 2, y: height / 2 });
}

async function refresh() {
  const [trial, slice] = [due.trial, look.slice];
  if (trial === null || (shown?.trial === trial && shown.slice === slice)) return draw();
  const slow = setTimeout(() => say("loading …"), 400);
  try {
    const images = await Promise.all(due.sides.map((side) => loader.get(side, trial, slice)));
    if (trial !== due.trial || slice !== look.slice) return undefined; // asked for another meanwhile
    shown = { trial, slice, images };
    say("");
  } catch (error) {
    return say(error.message);
  } finally {
    clearTimeout(slow);
  }
  setClock();
  prefetch(trial, slice);
  return draw();
}

async function prefetch(trial, slice) {
  const order = [...Array(due.slices).keys()].sort((a, b) => Math.abs(a - slice) - Math.abs(b - slice));
  for (const k of order) {
    if (trial !== due.trial || slice !== look.slice) return;
    try {
      await Promise.all(due.sides.map((side) => loader.get(side, trial, k)));
    } catch {
      return; // it is said when the slice itself is asked for
    }
  }
}

function draw() {
  controls();
  if (shown?.trial !== due.trial || due.trial === null) return;
  const [low, high] = [look.center - look.width / 2, look.center + look.width / 2];
  panels.forEach((panel, k) => {
    panel.fit();
    panel.look(due.size_mm, look);
    const context = panel.clear();
    const blocks = panel.crowding(due.pixel_mm);
    const key = [shown.trial, shown.slice, ...blocks].join();
    const image = painter.reduce(panel.name, key, shown.images[k], blocks);
    const bitmap = painter.paint(panel.name, [key, low, high].join(), image, grey(image, low, high));
    panel.draw(context, bitmap, due.pixel_mm.map((side, axis) => side * blocks[axis]), { smooth: true });
    panel.label(context, due.letters, due.mark);
  });
  $("stage").dataset.shown = shown.slice === look.slice ? `${shown.trial}/${shown.slice}` : "";
}

let isDue = false;

function update() {
  $("stage").dataset.shown = "";
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    refresh();
  });
}

function toSlice(slice) {
  look.slice = clamp(slice, 0, due.slices - 1);
  update();
}

function zoom(factor, point) {
  const next = clamp(look.zoom * factor, LEAST_ZOOM, MOST_ZOOM);
  const share = look.zoom / next; // the point stays where it is on the screen
  if (point) {
    look.x = point[0] + (look.x - point[0]) * share;
    look.y = point[1] + (look.y - point[1]) * share;
  }
  look.zoom = next;
  update();
}

function pan(dx, dy) {
  look.x = clamp(look.x + dx, 0, due.size_mm[1]);
  look.y = clamp(look.y + dy, 0, due.size_mm[0]);
  update();
}

function chooseWindow(name) {
  [look.center, look.width] = due.windows[name];
  look.window = name;
  update();
}

function listen(panel) {
  const canvas = panel.marks;
  let drag = null;
  let wheeled = 0;
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
    if (Math.abs(wheeled) < WHEEL_STEP) return;
    toSlice(look.slice + Math.sign(wheeled));
    wheeled = 0;
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    $("stage").focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    drag = { at: place(event), isWindow: event.button === 2 };
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    const at = place(event);
    if (drag) {
      const [dx, dy] = [at[0] - drag.at[0], at[1] - drag.at[1]];
      drag.at = at;
      if (drag.isWindow) {
        const step = Math.max(1, look.width / 300);
        look.width = Math.max(1, look.width + dx * step);
        look.center += dy * step;
        look.window = "free";
        update();
      } else {
        pan(-dx / panel.scale, -dy / panel.scale);
      }
    }
    point(panel.toMm(at));
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { drag = null; });
  canvas.addEventListener("pointerleave", () => point(null));
  panel.caption.textContent = `image ${panel.name.toUpperCase()}`;
  return panel;
}

function point(cursor) { // the same place in both
  for (const panel of panels) if (panel.scale) panel.mark([], cursor);
}

// --- questions ---------------------------------------------------------------------------------

function radios(line, name, choices) {
  for (const choice of choices) {
    const label = line.appendChild(document.createElement("label"));
    const input = label.appendChild(document.createElement("input"));
    Object.assign(input, { type: "radio", name, value: choice });
    input.setAttribute("aria-label", `${name.replace("_", " of ").toUpperCase()}: ${choice}`);
    label.appendChild(document.createElement("span")).textContent = choice;
  }
}

function questions() {
  for (const score of due.scores) {
    const block = $("questions").appendChild(document.createElement("div"));
    block.className = "score";
    const [title, meaning] = MEANINGS[score];
    const head = block.appendChild(document.createElement("p"));
    head.append(title);
    head.appendChild(document.createElement("span")).textContent = meaning;
    for (const side of due.sides) {
      const line = block.appendChild(document.createElement("div"));
      line.className = "line";
      line.dataset.item = `${score}_${side}`;
      line.appendChild(document.createElement("b")).textContent = side.toUpperCase();
      const choices = line.appendChild(document.createElement("div"));
      choices.className = "choices";
      radios(choices, `${score}_${side}`, ["1", "2", "3", "4", "5"]);
    }
  }
}

const asked = ["preference", ...items];
const given = (name) => form.elements[name].value;

function mark(name) {
  marked = name;
  $("preference").classList.toggle("due", name === "preference");
  for (const line of document.querySelectorAll(".line")) {
    line.classList.toggle("due", line.dataset.item === name);
  }
  document.querySelector("fieldset.due, .line.due")?.scrollIntoView({ block: "nearest" });
  $("save").classList.toggle("ready", asked.every(given));
}

function next(name) {
  const later = [...asked.slice(asked.indexOf(name) + 1), ...asked].find((one) => !given(one));
  mark(later ?? "");
}

function give(name, value) {
  form.elements[name].value = value;
  next(name);
}

function move(step) {
  const place = marked ? asked.indexOf(marked) : asked.length;
  mark(asked[clamp(place + step, 0, asked.length - 1)]);
}

function say(text) {
  $("message").textContent = text;
}

async function save() {
  if (saving || due.trial === null || !$("curtain").hidden) return;
  const missing = asked.find((name) => !given(name));
  if (missing) {
    mark(missing);
    const [score, side] = missing.split("_");
    say(side ? `${MEANINGS[score][0]} of ${side.toUpperCase()} is missing` : "The preference is missing");
    return;
  }
  const sent = Object.fromEntries(new FormData(form));
  for (const name of items) sent[name] = Number(sent[name]);
  const shape = `L ${Math.round(look.center)} W ${Math.round(look.width)}`;
  Object.assign(sent, { trial: due.trial, seconds: secondsNow(), window: `${look.window}: ${shape}` });
  saving = true;
  try {
    const answer = await fetch("rating", { method: "POST", body: JSON.stringify(sent) });
    if (!answer.ok) {
      say(await answer.text());
      return;
    }
    due = await answer.json();
  } catch {
    say("Not saved: the study is no longer served. Leave this page open, and save again once it is.");
    return;
  } finally {
    saving = false;
  }
  begin();
}

// --- from pair to pair -------------------------------------------------------------------------

function controls() {
  const done = (due.trial ?? due.total + 1) - 1;
  $("progress").value = done / due.total;
  const slices = due.slices > 1 ? ` · slice ${look.slice + 1} of ${due.slices}` : "";
  $("place").textContent = due.trial === null
    ? `reader ${due.reader} · all ${due.total} pairs done`
    : `reader ${due.reader} · pair ${due.trial} of ${due.total}${slices}`;
  for (const button of $("windows").children) {
    button.setAttribute("aria-pressed", button.dataset.name === look.window);
  }
  $("window").textContent = `L ${Math.round(look.center)}, W ${Math.round(look.width)} HU`;
}

function begin() {
  form.reset();
  say("");
  startClock();
  if (due.trial === null) {
    curtain("Thank you", [`All ${due.total} pairs are saved. You can close this page.`], null);
    shown = null;
    controls();
    return;
  }
  look.slice = Math.floor(due.slices / 2);
  resetLook();
  if (due.windows[look.window]) [look.center, look.width] = due.windows[look.window];
  mark("preference");
  $("stage").focus({ preventScroll: true });
  update();
}

function curtain(title, lines, button) {
  $("curtain-title").textContent = title;
  $("curtain-text").replaceChildren(...lines.map((line) => {
    if (typeof line !== "string") return line;
    return Object.assign(document.createElement("p"), { textContent: line });
  }));
  $("go").hidden = button === null;
  $("go").textContent = button ?? "";
  $("curtain").hidden = false;
  setClock();
  if (button) $("go").focus();
}

function introduce() {
  const left = due.total - due.trial + 1;
  const meanings = document.createElement("dl");
  for (const [title, meaning] of Object.values(MEANINGS)) {
    meanings.appendChild(document.createElement("dt")).textContent = title;
    meanings.appendChild(document.createElement("dd")).textContent = meaning;
  }
  curtain(due.trial > 1 ? "Welcome back" : "Reader study", [
    `${left} of ${due.total} pairs are to be read. A pair shows the same slices twice, as A and as B. `
      + "Either, both or none may be synthetic; the sides are drawn by lot for each pair, and some "
      + "pairs come twice.",
    "Say which you would rather report from, and score both. 5 is always the best:",
    meanings,
    "The mouse works, and so do keys alone: ← or → or N for the preference, 1 to 5 for each score in "
      + "turn, Enter to save. A saved answer cannot be changed. You can stop at any time and open this "
      + "link again later.",
    "The time of each pair is taken while it is on the screen. Use P when you are interrupted.",
  ], due.trial > 1 ? "Go on" : "Begin");
}

function pause() {
  if (due.trial !== null) curtain("Paused", ["The clock stands still. Answers given so far are kept."], "Go on");
}

function leaveCurtain() {
  if (due.trial === null) return;
  $("curtain").hidden = true;
  setClock();
  $("stage").focus({ preventScroll: true });
  update();
}

// --- keys --------------------------------------------------------------------------------------

const KEYS = {
  ArrowUp: () => toSlice(look.slice - 1),
  ArrowDown: () => toSlice(look.slice + 1),
  ArrowLeft: () => give("preference", "a"),
  ArrowRight: () => give("preference", "b"),
  n: () => give("preference", "none"),
  Backspace: () => move(-1),
  Delete: () => move(1),
  c: () => form.elements.comment.focus(),
  p: pause,
  0: () => { resetLook(); update(); },
  "+": () => zoom(1.25),
  "=": () => zoom(1.25),
  "-": () => zoom(0.8),
  Enter: save,
};
for (const [key, name] of Object.entries(WINDOW_KEYS)) KEYS[key] = () => chooseWindow(name);
for (const score of "12345") {
  KEYS[score] = () => {
    if (items.includes(marked)) give(marked, score);
    else say(marked ? "First the preference: ← A, N neither, B →" : "Everything is answered: Enter saves");
  };
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey) return;
  if (!$("curtain").hidden) {
    if (event.key === "p" || event.key === "P") leaveCurtain();
    return;
  }
  if (event.target === form.elements.comment) {
    if (event.key === "Escape" || (event.key === "Enter" && !event.shiftKey)) {
      event.preventDefault();
      $("stage").focus({ preventScroll: true });
      if (event.key === "Enter") save();
    }
    return;
  }
  if (event.target.closest("button, summary") && (event.key === " " || event.key === "Enter")) return;
  const arrow = ARROWS[event.key];
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (arrow && event.altKey) pan(...arrow.map((way) => (way * due.size_mm[1]) / 20 / look.zoom));
  else if (KEYS[name]) {
    say("");
    KEYS[name]();
  } else return;
  event.preventDefault();
});

// --- beginning ---------------------------------------------------------------------------------

$("notice").textContent = due.notice;
questions();
for (const [key, name] of Object.entries(WINDOW_KEYS)) {
  const button = $("windows").appendChild(document.createElement("button"));
  Object.assign(button, { type: "button", onclick: () => chooseWindow(name) });
  button.dataset.name = name;
  button.append(name);
  button.appendChild(document.createElement("kbd")).textContent = key.toUpperCase();
}
form.addEventListener("submit", (event) => {
  event.preventDefault();
  save();
});
form.addEventListener("change", (event) => {
  if (event.target.type === "radio") next(event.target.name);
});
form.addEventListener("focusin", (event) => {
  if (event.target.type === "radio") mark(event.target.name);
});
$("go").addEventListener("click", leaveCurtain);
$("pause").addEventListener("click", pause);
document.addEventListener("visibilitychange", setClock);
window.addEventListener("pagehide", keepClock);
new ResizeObserver(() => update()).observe($("stage"));
begin();
if (due.trial !== null) introduce();
// For who drives the page: what is set, and the clock.
window.study = { look, clock, state: () => due, seconds: secondsNow };
