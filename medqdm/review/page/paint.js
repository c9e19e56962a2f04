// Numbers to pictures: grey values of a window, colours of a palette.

export class Painter {
  #made = new Map(); // slot -> { key, canvas }
  #small = new Map(); // slot -> { key, image }

  // Means of blocks of an image, as many as the screen can show: less to paint, the same to see.
  reduce(slot, key, image, [high, wide]) {
    if (high === 1 && wide === 1) return image;
    let small = this.#small.get(slot);
    if (small?.key !== key) {
      small = { key, image: means(image, high, wide) };
      this.#small.set(slot, small);
    }
    return small.image;
  }

  // The canvas of a slot, painted anew when its key has changed.
  paint(slot, key, image, fill) {
    let made = this.#made.get(slot);
    if (made?.key === key) return made.canvas;
    if (!made || made.canvas.width !== image.columns || made.canvas.height !== image.rows) {
      const canvas = document.createElement("canvas");
      canvas.width = image.columns;
      canvas.height = image.rows;
      made = { canvas, pixels: new ImageData(image.columns, image.rows) };
      this.#made.set(slot, made);
    }
    fill(new Uint32Array(made.pixels.data.buffer));
    made.canvas.getContext("2d").putImageData(made.pixels, 0, 0);
    made.key = key;
    return made.canvas;
  }
}

// Grey values; nothing measured is black.
export function grey({ values }, low, high) {
  const steps = 255 / (high - low);
  return (out) => {
    for (let i = 0; i < values.length; i++) {
      let g = (values[i] - low) * steps + 0.5;
      g = g < 0 ? 0 : g > 255 ? 255 : g | 0;
      out[i] = 0xff000000 | (g * 0x010101);
    }
  };
}

// Values from -limit to limit on a palette.
export function signed(values, palette, limit) {
  const table = packed(palette, () => 255);
  const last = palette.length - 1;
  return (out) => {
    for (let i = 0; i < values.length; i++) {
      const place = ((values[i] / limit + 1) / 2) * last + 0.5;
      out[i] = table[place < 0 ? 0 : place > last ? last : place | 0];
    }
  };
}

// An overlay: what is near zero is left clear.
export function clear({ values }, palette, kind, limit) {
  const last = palette.length - 1;
  if (kind === "steps") {
    const table = [0, ...packed(palette, () => 255)];
    return (out) => {
      for (let i = 0; i < values.length; i++) out[i] = table[Math.min(values[i], last + 1)];
    };
  }
  const isSigned = kind === "signed";
  const strength = (k) => (isSigned ? Math.abs((2 * k) / last - 1) : k / last);
  const table = packed(palette, (k) => 255 * Math.min(1, 1.6 * strength(k)));
  return (out) => {
    for (let i = 0; i < values.length; i++) {
      const share = isSigned ? (values[i] / limit + 1) / 2 : values[i] / limit;
      const place = share * last + 0.5;
      out[i] = share !== share ? 0 : table[place < 0 ? 0 : place > last ? last : place | 0];
    }
  };
}

export function subtract(image, other) {
  const values = new Float32Array(image.values.length);
  for (let i = 0; i < values.length; i++) values[i] = image.values[i] - other.values[i];
  return { rows: image.rows, columns: image.columns, values };
}

function means({ rows, columns, values }, high, wide) {
  const [down, across] = [Math.ceil(rows / high), Math.ceil(columns / wide)];
  const out = new Float32Array(down * across);
  const place = Int32Array.from({ length: columns }, (_, c) => Math.floor(c / wide));
  for (let r = 0, i = 0; r < rows; r++) {
    const line = Math.floor(r / high) * across;
    for (let c = 0; c < columns; c++, i++) out[line + place[c]] += values[i];
  }
  for (let k = 0; k < out.length; k++) { // the last blocks may be cut
    const [r, c] = [Math.floor(k / across) * high, (k % across) * wide];
    out[k] /= Math.min(high, rows - r) * Math.min(wide, columns - c);
  }
  return { rows: down, columns: across, values: out };
}

function packed(palette, alpha) {
  return palette.map(([r, g, b], k) => ((Math.round(alpha(k)) << 24) | (b << 16) | (g << 8) | r) >>> 0);
}
