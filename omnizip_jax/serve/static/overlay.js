// What is kept of the picture: each window plays once it has been read, dropped tokens dimmed.

import { paint } from "./pictures.js";

const SMALLEST = 480; // pixels; small pictures are enlarged, so that the cells have sharp edges
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

  show(window, pictures) {
    this.#facts.textContent = `${window.video_kept} of ${window.video}`;
    const words = `${window.video_kept} of ${window.video} tokens of the last two seconds`;
    this.#canvas.setAttribute("aria-label", `What it keeps of the picture: ${words}`);
    this.#timers.forEach(clearTimeout);
    const shown = still.matches ? pictures.slice(-1) : pictures;
    this.#timers = shown.map(({ after, bitmap, kept }) =>
      setTimeout(
        () => paint(this.#canvas, bitmap, window.grid, kept, Math.max(bitmap.width, SMALLEST)),
        still.matches ? 0 : 1000 * after,
      ),
    );
  }
}
