// Layers of slices and planes, fetched on demand and kept while there is room.

const TYPES = { int16: Int16Array, float32: Float32Array, uint8: Uint8Array };

export class Loader {
  #kept = new Map(); // key -> { promise, image }, the least used first
  #bytes = 0;

  constructor(limitBytes) {
    this.limitBytes = limitBytes;
  }

  // { rows, columns, values } of a layer; throws an Error with the server's line.
  get(name, axis, index) {
    const key = `layer/${name}/${axis}/${index}`;
    let entry = this.#kept.get(key);
    if (entry) {
      this.#kept.delete(key);
    } else {
      entry = { image: null };
      entry.promise = this.#fetch(key, entry);
    }
    this.#kept.set(key, entry);
    return entry.promise;
  }

  async #fetch(key, entry) {
    try {
      const answer = await fetch(key);
      if (!answer.ok) throw new Error(await answer.text());
      const [rows, columns] = answer.headers.get("X-Shape").split(",").map(Number);
      const values = new TYPES[answer.headers.get("X-Type")](await answer.arrayBuffer());
      entry.image = { rows, columns, values };
      this.#bytes += values.byteLength;
      this.#makeRoom();
      return entry.image;
    } catch (error) {
      this.#kept.delete(key);
      throw error;
    }
  }

  #makeRoom() {
    for (const [key, entry] of this.#kept) {
      if (this.#bytes <= this.limitBytes) return;
      if (!entry.image) continue;
      this.#bytes -= entry.image.values.byteLength;
      this.#kept.delete(key);
    }
  }
}
