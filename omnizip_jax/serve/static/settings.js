// Method, budget and eviction. Dispatches "change" when the method or the budget changes.

import { element } from "./dom.js";
import { percent } from "./format.js";

const NAMES = { omnizip: "OmniZip", random: "Random", all: "All tokens", surprise: "Surprise" };
const BUDGETS = [0.25, 0.35, 0.45, 0.6];
const DEFAULT = ""; // the budget of a server whose default is not a share of all tokens

export class Settings extends EventTarget {
  #form;
  #model;

  constructor(form, model) {
    super();
    this.#form = form;
    this.#model = model;
    const { method, settings } = model.default;
    const keep = settings.keep ?? DEFAULT;
    const methods = model.streaming.map((name) => [name, NAMES[name] ?? name]);
    const shares = [...new Set([keep, ...BUDGETS])].sort((a, b) => a - b);
    const budgets = shares.map((share) => [share, share === DEFAULT ? "Default" : percent(share)]);
    radios(form.querySelector("#methods"), "method", methods, method);
    radios(form.querySelector("#budgets"), "keep", budgets, keep);
    form.addEventListener("change", ({ target }) => {
      this.#refresh();
      if (target.name !== "memory") this.dispatchEvent(new Event("change"));
    });
    this.#refresh();
  }

  // Fields of "omnizip" in a session.config.
  get method() {
    const { method, keep } = this.#chosen;
    const own = this.#model.default;
    // The server's default is compiled already.
    if (method === own.method && keep === String(own.settings.keep ?? DEFAULT)) return own;
    return { method, settings: method === "all" || keep === DEFAULT ? {} : { keep: Number(keep) } };
  }

  get memory() {
    return this.#form.elements.memory.value;
  }

  get description() {
    const { method, keep } = this.#chosen;
    const name = NAMES[method] ?? method;
    return method === "all" || keep === DEFAULT ? name : `${name}, ${percent(keep)}`;
  }

  get #chosen() {
    const { method, keep } = this.#form.elements;
    return { method: method.value, keep: keep.value };
  }

  #refresh() {
    this.#form.querySelector("#budgets").disabled = this.#form.elements.method.value === "all";
  }
}

function radios(fieldset, name, values, chosen) {
  for (const [value, words] of values) {
    const radio = element("input", { type: "radio", name, value, checked: value === chosen });
    fieldset.append(element("label", {}, radio, element("span", {}, words)));
  }
}
