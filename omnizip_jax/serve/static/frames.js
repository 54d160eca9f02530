// Frames that were sent, kept until their window was read.

const MAX_WINDOWS = 8;

export class FrameBuffer {
  #seconds;
  #windows = new Map();

  constructor(seconds) {
    this.#seconds = seconds; // of a window
  }

  add(time, bitmap) {
    const number = Math.floor(time / this.#seconds);
    if (!this.#windows.has(number)) this.#windows.set(number, []);
    this.#windows.get(number).push({ time, bitmap });
    for (const old of this.#windows.keys()) {
      if (old > number - MAX_WINDOWS) break;
      this.#windows.get(old).forEach((frame) => frame.bitmap.close());
      this.#windows.delete(old);
    }
  }

  // The frames of a window, each with its time in the window, its grid, and the kept tokens of it.
  of({ number, kept }) {
    const begin = number * this.#seconds;
    return (this.#windows.get(number) ?? []).map(({ time, bitmap }) => {
      const after = time - begin;
      const grid = Math.floor((after / this.#seconds) * kept.length);
      return { after, bitmap, grid, kept: kept[grid] ?? "" };
    });
  }
}

// Draws a frame on a canvas, with the cells of dropped tokens dimmed.
export function paint(canvas, bitmap, [rows, columns], kept, width = bitmap.width) {
  const height = Math.round((width * bitmap.height) / bitmap.width);
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0, width, height);
  context.fillStyle = "rgb(12 11 10 / 0.78)";
  const x = (column) => Math.round((column * width) / columns);
  const y = (row) => Math.round((row * height) / rows);
  [...kept].forEach((bit, i) => {
    if (bit === "1") return;
    const [row, column] = [Math.floor(i / columns), i % columns];
    context.fillRect(x(column), y(row), x(column + 1) - x(column), y(row + 1) - y(row));
  });
}
