// Tokens, cache, operations and time, compared with all tokens.

import { element } from "./dom.js";
import { count, median, milliseconds, percent } from "./format.js";

export class Statistics {
  #model;
  #places;
  #seen = 0;
  #kept = 0;
  #times = new Map(); // seconds per window, by method

  constructor(model, places) {
    this.#model = model;
    this.#places = places;
    this.clear();
  }

  clear() {
    this.#seen = this.#kept = 0;
    for (const place of Object.values(this.#places)) {
      place.replaceChildren(element("strong", {}, "–"));
    }
  }

  read(window, method) {
    this.#seen += window.audio + window.video;
    this.#kept += window.audio_kept + window.video_kept;
    const share = this.#kept / Math.max(this.#seen, 1);
    const all = Math.min(1, window.fill + (this.#seen - this.#kept) / this.#model.capacity);
    this.#show("tokens", percent(share), `${count(this.#kept)} of ${count(this.#seen)}`, share);
    this.#show("cache", percent(window.fill), `all tokens: ${percent(all)}`, window.fill, all);
    this.#show("work", percent(window.work), "of those for all tokens", window.work);
    if (!this.#times.has(method)) this.#times.set(method, []);
    const times = this.#times.get(method);
    times.push(window.took);
    const others = [...this.#times]
      .filter(([other]) => other !== method)
      .map(([other, seconds]) => `${other}: ${milliseconds(median(seconds))}`);
    const realTime = median(times) / this.#model.window_seconds;
    const against = others.join("; ") || `${percent(realTime)} of real time`;
    this.#show("time", milliseconds(median(times)), against, Math.min(1, realTime));
  }

  #show(name, value, words, share, mark = null) {
    const meter = element("b", { className: "level", "aria-hidden": "true" }, element("i"));
    meter.firstChild.style.width = `${100 * share}%`;
    if (mark !== null) meter.style.setProperty("--mark", `${100 * mark}%`);
    const parts = [element("strong", {}, value), meter, element("span", {}, words)];
    this.#places[name].replaceChildren(...parts);
  }
}
