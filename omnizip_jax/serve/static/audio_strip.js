// The audio level of the last seconds, one bar per token; kept tokens are highlighted.

import { fitCanvas } from "./dom.js";

const RATE = 16_000;
const SAMPLES = 640; // per token: 40 ms
const SHOWN = 200; // tokens
const MIN_HEIGHT = 0.08; // share of the height

export class AudioStrip {
  #canvas;
  #facts;
  #levels = []; // per token, 0 to 1
  #kept = new Map(); // by token that was read
  #loudest = 0;
  #samples = 0;
  #origin = 0; // time of the first sample, unless the audio has paused since

  constructor(canvas, facts) {
    this.#canvas = canvas;
    this.#facts = facts;
  }

  clear() {
    this.#levels = [];
    this.#kept.clear();
    this.#samples = this.#origin = 0;
    this.#facts.textContent = "";
    this.draw();
  }

  add(samples) {
    for (const sample of samples) {
      this.#loudest = Math.max(this.#loudest, Math.abs(sample) / 32768);
      if (++this.#samples % SAMPLES === 0) {
        this.#levels.push(this.#loudest);
        this.#loudest = 0;
      }
    }
    this.draw();
  }

  // After a pause the next audio is at this time.
  jump(time) {
    this.#origin = time - this.#samples / RATE;
  }

  read({ start, heard, audio, audio_kept }) {
    const first = Math.round(((start - this.#origin) * RATE) / SAMPLES);
    [...heard].forEach((bit, i) => this.#kept.set(first + i, bit === "1"));
    for (const old of this.#kept.keys()) {
      if (old < this.#levels.length - 2 * SHOWN) this.#kept.delete(old);
    }
    this.#facts.textContent = `${audio_kept} of ${audio}`;
    const words = `${audio_kept} of ${audio} tokens of the last two seconds`;
    this.#canvas.setAttribute("aria-label", `Kept audio tokens: ${words}`);
    this.draw();
  }

  draw() {
    const { context, width, height } = fitCanvas(this.#canvas);
    const colour = (name) => getComputedStyle(this.#canvas).getPropertyValue(name);
    const [lit, dropped, waiting] = ["--accent", "--line", "--faint"].map(colour);
    context.clearRect(0, 0, width, height);
    const step = width / SHOWN;
    const first = Math.max(0, this.#levels.length - SHOWN);
    for (let i = first; i < this.#levels.length; i++) {
      const kept = this.#kept.get(i);
      context.fillStyle = kept === undefined ? waiting : kept ? lit : dropped;
      // The square root makes quiet audio visible.
      const tall = height * Math.max(MIN_HEIGHT, Math.min(1, 1.2 * Math.sqrt(this.#levels[i])));
      context.fillRect((i - first) * step, (height - tall) / 2, Math.max(1, step - 1), tall);
    }
  }
}
