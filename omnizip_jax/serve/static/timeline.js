// A thumbnail of every window, as bright as its share of kept tokens that are in the cache.

import { element } from "./dom.js";
import { clock, count, sum } from "./format.js";
import { paint } from "./frames.js";

const SHOWN = 150; // windows and questions
const WIDTH = 144; // pixels of a thumbnail

export class Timeline {
  #list;
  #summary;
  #seconds;
  #windows = new Map();
  #starts = new Map(); // seconds, by window

  constructor(list, summary, seconds) {
    this.#list = list;
    this.#summary = summary;
    this.#seconds = seconds;
  }

  clear() {
    this.#list.replaceChildren();
    this.#windows.clear();
    this.#starts.clear();
    this.#summary.textContent = "";
  }

  read(window, frames) {
    const canvases = window.kept.map((kept, grid) => {
      const canvas = element("canvas", { "aria-hidden": "true" });
      const shown = frames.filter((frame) => frame.grid === grid);
      const { bitmap } = shown[Math.floor(shown.length / 2)] ?? {};
      if (bitmap) paint(canvas, bitmap, window.grid, kept, WIDTH);
      return canvas;
    });
    const fill = element("i");
    const words = element("span", { className: "unseen" });
    const item = element(
      "li",
      {},
      ...canvases,
      element("b", { className: "level", "aria-hidden": "true" }, fill),
      element("time", {}, clock(window.start)),
      words,
    );
    this.#starts.set(window.number, window.start);
    this.#windows.set(window.number, { item, words, fill, window });
    this.#append(item);
    this.#updateRetained(new Map(window.remembered));
  }

  skipped({ start }) {
    const time = element("time", {}, clock(start));
    this.#append(element("li", { className: "skipped" }, element("span", {}, "skipped"), time));
  }

  // Marks a question, a change of method, or a pause.
  mark(text) {
    const last = this.#list.lastElementChild;
    if (last?.className === "mark" && last.dataset.text === text) {
      last.dataset.times = Number(last.dataset.times) + 1;
      last.firstElementChild.textContent = `${text} ×\u00a0${last.dataset.times}`;
      return;
    }
    const item = element("li", { className: "mark" }, element("span", {}, text));
    Object.assign(item.dataset, { text, times: 1 });
    this.#append(item);
  }

  #append(item) {
    const scroll = this.#list.parentElement;
    const atEnd = scroll.scrollLeft + scroll.clientWidth > scroll.scrollWidth - 80;
    this.#list.append(item);
    if (this.#list.children.length > SHOWN) this.#list.firstElementChild.remove();
    if (atEnd) scroll.scrollLeft = scroll.scrollWidth;
  }

  #updateRetained(tokens) {
    for (const [number, { item, words, fill, window }] of this.#windows) {
      const left = tokens.get(number) ?? 0;
      const all = window.audio + window.video;
      const kept = window.audio_kept + window.video_kept;
      item.style.setProperty("--left", kept ? left / kept : 0);
      fill.style.width = `${(100 * left) / Math.max(all, 1)}%`;
      item.title = `${kept} of ${all} tokens kept, ${left} in the cache`;
      words.textContent = item.title;
      if (!item.isConnected) this.#windows.delete(number);
    }
    const total = sum([...tokens.values()]);
    const start = (number) => this.#starts.get(number) ?? 0;
    const oldest = clock(start(Math.min(...tokens.keys())));
    const newest = clock(start(Math.max(...tokens.keys())) + this.#seconds);
    this.#summary.textContent = tokens.size
      ? `${oldest} to ${newest}, ${count(total)} tokens`
      : "none yet";
  }
}
