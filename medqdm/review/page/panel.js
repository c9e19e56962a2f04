// One picture: two canvases, the image below and what is marked on it above.

const INK = "#e8e8e8";
const SOURCE_MARK = "#56b4e9";

export class Panel {
  constructor(stage, name) {
    this.name = name;
    this.root = document.createElement("figure");
    this.root.className = "panel";
    this.root.dataset.panel = name;
    this.caption = this.root.appendChild(document.createElement("figcaption"));
    const box = this.root.appendChild(document.createElement("div"));
    this.image = box.appendChild(document.createElement("canvas"));
    this.marks = box.appendChild(document.createElement("canvas"));
    stage.append(this.root);
  }

  fit() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.marks;
    for (const canvas of [this.image, this.marks]) {
      const [width, height] = [Math.round(clientWidth * ratio), Math.round(clientHeight * ratio)];
      if (canvas.width !== width) canvas.width = width;
      if (canvas.height !== height) canvas.height = height;
    }
    [this.width, this.height, this.ratio] = [clientWidth, clientHeight, ratio];
  }

  // Place of the view on the canvas, in CSS pixels: px = (mm - centre) * scale + middle.
  look(sizeMm, view) {
    const fit = Math.min(this.width / sizeMm[1], this.height / sizeMm[0]) * 0.98;
    this.scale = Math.max(1e-6, fit * view.zoom);
    this.centre = [view.x, view.y];
    this.sizeMm = sizeMm;
  }

  toPx([x, y]) {
    return [
      (x - this.centre[0]) * this.scale + this.width / 2,
      (y - this.centre[1]) * this.scale + this.height / 2,
    ];
  }

  toMm([x, y]) {
    return [
      (x - this.width / 2) / this.scale + this.centre[0],
      (y - this.height / 2) / this.scale + this.centre[1],
    ];
  }

  // How many pixels of such a size, down and across, share one of the screen.
  crowding(pixelMm) {
    return pixelMm.map((side) => Math.max(1, Math.floor(1 / (this.scale * this.ratio * side))));
  }

  clear() {
    const context = this.#context(this.image);
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.width, this.height);
    return context;
  }

  // A bitmap whose pixels are pixelMm high and wide, from the view's corner on.
  draw(context, bitmap, [pixelY, pixelX], { smooth, alpha = 1, from = 0 }) {
    const [left, top] = this.toPx([0, 0]);
    const [right, bottom] = this.toPx([this.sizeMm[1], this.sizeMm[0]]);
    context.save();
    context.beginPath();
    context.rect(Math.max(left, from), top, right - Math.max(left, from), bottom - top);
    context.clip();
    context.globalAlpha = alpha;
    context.imageSmoothingEnabled = smooth || this.scale * pixelX < 1;
    context.imageSmoothingQuality = "high";
    const [width, height] = [bitmap.width * pixelX * this.scale, bitmap.height * pixelY * this.scale];
    context.drawImage(bitmap, left, top, width, height);
    context.restore();
  }

  // The sides of the patient, the scale and, where it shows, that detail is synthetic.
  label(context, letters, mark) {
    const [left, right, top, bottom] = letters;
    const [w, h] = [this.width, this.height];
    write(context, left, 6, h / 2, "left", "middle");
    write(context, right, w - 6, h / 2, "right", "middle");
    write(context, top, w / 2, 6, "center", "top");
    write(context, bottom, w / 2, h - 6, "center", "bottom");
    if (mark) write(context, mark, w - 8, 8, "right", "top", "#ffd24a", "bold 13px");
    const lengthMm = roundedDown(w / this.scale / 4);
    const length = lengthMm * this.scale;
    context.fillStyle = "#000";
    context.fillRect(9, h - 15, length + 2, 6);
    context.fillStyle = INK;
    context.fillRect(10, h - 14, length, 4);
    this.root.dataset.scaleMm = lengthMm;
    this.root.dataset.scalePx = length;
    write(context, `${Number(lengthMm.toPrecision(3))} mm`, 10, h - 17, "left", "bottom");
  }

  divide(context, x) {
    context.fillStyle = INK;
    context.fillRect(x - 0.5, 0, 1, this.height);
  }

  mark(measures, cursor) {
    const context = this.#context(this.marks);
    context.clearRect(0, 0, this.width, this.height);
    context.lineWidth = 1.5;
    measures.forEach((measure, k) => {
      const [a, b] = [this.toPx(measure.a), this.toPx(measure.b)];
      context.strokeStyle = SOURCE_MARK;
      context.beginPath();
      if (measure.kind === "distance") {
        context.moveTo(...a);
        context.lineTo(...b);
      } else {
        context.ellipse((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, Math.abs(b[0] - a[0]) / 2,
          Math.abs(b[1] - a[1]) / 2, 0, 0, 2 * Math.PI);
      }
      context.stroke();
      write(context, measure.short ?? `${k + 1}`, Math.max(a[0], b[0]) + 5, (a[1] + b[1]) / 2,
        "left", "middle", SOURCE_MARK);
    });
    if (!cursor) return;
    const [x, y] = this.toPx(cursor);
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + 4 * dx, y + 4 * dy);
      context.lineTo(x + 11 * dx, y + 11 * dy);
    }
    for (const [color, width] of [["#000", 3], ["#fff", 1]]) {
      context.strokeStyle = color;
      context.lineWidth = width;
      context.stroke();
    }
  }

  #context(canvas) {
    const context = canvas.getContext("2d");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    return context;
  }
}

function write(context, text, x, y, align, baseline, color = INK, font = "13px") {
  context.font = `${font} system-ui, sans-serif`;
  context.textAlign = align;
  context.textBaseline = baseline;
  context.lineWidth = 3;
  context.strokeStyle = "#000";
  context.strokeText(text, x, y);
  context.fillStyle = color;
  context.fillText(text, x, y);
}

// A round length: 1, 2 or 5 times a power of ten.
function roundedDown(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return Math.max(...[1, 2, 5].filter((step) => step * power <= value)) * power;
}
