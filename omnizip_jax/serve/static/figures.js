// Tokens, cache, operations and time, against reading everything.

import { element } from "./element.js";
import { count, median, milliseconds, percent } from "./format.js";

export class Figures {
  #about;
  #places;
  #seen = 0;
  #kept = 0;
  #times = new Map(); // seconds of windows, by how they were read

  constructor(about, places) {
    this.#about = about;
    this.#places = places;
    this.clear();
  }

  clear() {
    this.#seen = this.#kept = 0;
    for (const place of Object.values(this.#places)) {
      place.replaceChildren(element("strong", {}, "–"));
    }
  }

  read(window, reading) {
    this.#seen += window.audio + window.video;
    this.#kept += window.audio_kept + window.video_kept;
    const share = this.#kept / Math.max(this.#seen, 1);
    const all = Math.min(1, window.fill + (this.#seen - this.#kept) / this.#about.capacity);
    this.#say("tokens", percent(share), `${count(this.#kept)} of ${count(this.#seen)}`, share);
    this.#say("cache", percent(window.fill), `all tokens: ${percent(all)}`, window.fill, all);
    this.#say("work", percent(window.work), "of what all tokens take", window.work);
    if (!this.#times.has(reading)) this.#times.set(reading, []);
    const times = this.#times.get(reading);
    times.push(window.took);
    const others = [...this.#times]
      .filter(([other]) => other !== reading)
      .map(([other, seconds]) => `${other}: ${milliseconds(median(seconds))}`);
    const real = median(times) / this.#about.window_seconds;
    const against = others.join("; ") || `${percent(real)} of real time`;
    this.#say("time", milliseconds(median(times)), against, Math.min(1, real));
  }

  #say(name, value, words, share, mark = null) {
    const meter = element("b", { className: "level", "aria-hidden": "true" }, element("i"));
    meter.firstChild.style.width = `${100 * share}%`;
    if (mark !== null) meter.style.setProperty("--mark", `${100 * mark}%`);
    const parts = [element("strong", {}, value), meter, element("span", {}, words)];
    this.#places[name].replaceChildren(...parts);
  }
}
