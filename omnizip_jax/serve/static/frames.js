// Frames that were sent, kept until their window was read.

const MAX_WINDOWS = 8;

export class FrameBuffer {
  #seconds;
  #frames = []; // in the order in which they were sent

  constructor(seconds) {
    this.#seconds = seconds; // of a window
  }

  add(time, bitmap) {
    this.#frames.push({ time, bitmap });
    while (Math.abs(time - this.#frames[0].time) > MAX_WINDOWS * this.#seconds) {
      this.#frames.shift().bitmap.close();
    }
  }

  // The frames of a window, each with its time in the window, its grid, and the kept tokens of it.
  of({ start, kept }) {
    const inside = this.#frames.filter(({ time }) => time >= start && time < start + this.#seconds);
    return inside.map(({ time, bitmap }) => {
      const after = time - start;
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
