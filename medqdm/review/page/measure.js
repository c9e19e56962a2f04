// Distances and regions, in mm from the upper left corner of a view.

export function distanceMm([x0, y0], [x1, y1]) {
  return Math.hypot(x1 - x0, y1 - y0);
}

// Mean and standard deviation of the pixels whose centres lie in the ellipse between two corners.
export function ellipse({ rows, columns, values }, [pixelY, pixelX], [x0, y0], [x1, y1]) {
  const [centreX, centreY] = [(x0 + x1) / 2, (y0 + y1) / 2];
  const [radiusX, radiusY] = [Math.abs(x1 - x0) / 2, Math.abs(y1 - y0) / 2];
  const first = (low, pixel) => Math.max(0, Math.floor(low / pixel - 1));
  const last = (high, pixel, count) => Math.min(count - 1, Math.ceil(high / pixel));
  let [count, sum, squares, shift] = [0, 0, 0, 0];
  for (let r = first(centreY - radiusY, pixelY); r <= last(centreY + radiusY, pixelY, rows); r++) {
    const v = ((r + 0.5) * pixelY - centreY) / radiusY;
    for (let c = first(centreX - radiusX, pixelX); c <= last(centreX + radiusX, pixelX, columns); c++) {
      const u = ((c + 0.5) * pixelX - centreX) / radiusX;
      const value = values[r * columns + c];
      if (u * u + v * v > 1 || Number.isNaN(value)) continue;
      if (count === 0) shift = value; // keeps the squares small
      count += 1;
      sum += value - shift;
      squares += (value - shift) ** 2;
    }
  }
  const mean = sum / count;
  return {
    count,
    areaMm2: count * pixelX * pixelY,
    mean: shift + mean,
    deviation: Math.sqrt(Math.max(0, squares / count - mean * mean)),
  };
}
