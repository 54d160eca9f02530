// Plays each window once it was read, with dropped tokens dimmed.

import { paint } from "./frames.js";

const MIN_WIDTH = 480; // pixels; small frames are enlarged for sharp edges of the cells
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Overlay {
  #canvas;
  #facts;
  #timers = [];

  constructor(canvas, facts) {
    this.#canvas = canvas;
    this.#facts = facts;
  }

  clear() {
    this.#timers.forEach(clearTimeout);
    this.#canvas.getContext("2d").clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#facts.textContent = "";
  }

  show(window, frames) {
    this.#facts.textContent = `${window.video_kept} of ${window.video}`;
    const words = `${window.video_kept} of ${window.video} tokens of the last two seconds`;
    this.#canvas.setAttribute("aria-label", `Kept video tokens: ${words}`);
    this.#timers.forEach(clearTimeout);
    const shown = still.matches ? frames.slice(-1) : frames;
    this.#timers = shown.map(({ after, bitmap, kept }) =>
      setTimeout(
        () => paint(this.#canvas, bitmap, window.grid, kept, Math.max(bitmap.width, MIN_WIDTH)),
        still.matches ? 0 : 1000 * after,
      ),
    );
  }
}
