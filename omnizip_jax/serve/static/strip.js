// The sound of the last seconds as bars, one for every token: kept ones are lit.

import { sharp } from "./element.js";

const SAMPLES = 640; // of a token: 40 ms at 16 kHz
const SHOWN = 200; // tokens
const FLOOR = 0.08; // of the height, so that silence is to be seen, too

export class Strip {
  #canvas;
  #facts;
  #levels = []; // of every token so far, 0 to 1
  #fates = new Map(); // of tokens that were read: kept or not
  #loudest = 0;
  #samples = 0;

  constructor(canvas, facts) {
    this.#canvas = canvas;
    this.#facts = facts;
  }

  clear() {
    this.#levels = [];
    this.#fates.clear();
    this.#samples = 0;
    this.#facts.textContent = "";
    this.draw();
  }

  hear(samples) {
    for (const sample of samples) {
      this.#loudest = Math.max(this.#loudest, Math.abs(sample) / 32768);
      if (++this.#samples % SAMPLES === 0) {
        this.#levels.push(this.#loudest);
        this.#loudest = 0;
      }
    }
    this.draw();
  }

  read({ number, heard, audio, audio_kept }, tokensPerWindow) {
    [...heard].forEach((bit, i) => this.#fates.set(number * tokensPerWindow + i, bit === "1"));
    for (const old of this.#fates.keys()) {
      if (old < this.#levels.length - 2 * SHOWN) this.#fates.delete(old);
    }
    this.#facts.textContent = `${audio_kept} of ${audio}`;
    const words = `${audio_kept} of ${audio} tokens of the last two seconds`;
    this.#canvas.setAttribute("aria-label", `What it keeps of the sound: ${words}`);
    this.draw();
  }

  draw() {
    const { context, width, height } = sharp(this.#canvas);
    const colour = (name) => getComputedStyle(this.#canvas).getPropertyValue(name);
    const [lit, dropped, waiting] = ["--accent", "--line", "--faint"].map(colour);
    context.clearRect(0, 0, width, height);
    const step = width / SHOWN;
    const first = Math.max(0, this.#levels.length - SHOWN);
    for (let i = first; i < this.#levels.length; i++) {
      const fate = this.#fates.get(i);
      context.fillStyle = fate === undefined ? waiting : fate ? lit : dropped;
      // Square roots bring soft sounds into sight.
      const tall = height * Math.max(FLOOR, Math.min(1, 1.2 * Math.sqrt(this.#levels[i])));
      context.fillRect((i - first) * step, (height - tall) / 2, Math.max(1, step - 1), tall);
    }
  }
}
