// How windows are read: method, budget, memory. "change" comes when the method or budget does.

import { element } from "./element.js";
import { percent } from "./format.js";

const NAMES = { omnizip: "OmniZip", random: "Random", all: "All tokens" };
const BUDGETS = [0.25, 0.35, 0.45, 0.6];
const OWN = ""; // the budget of the server's own settings, where they are no share of all tokens

export class Settings extends EventTarget {
  #form;
  #about;

  constructor(form, about) {
    super();
    this.#form = form;
    this.#about = about;
    const { method, settings } = about.default;
    const keep = settings.keep ?? OWN;
    const methods = about.streaming.map((name) => [name, NAMES[name] ?? name]);
    const shares = [...new Set([keep, ...BUDGETS])].sort((a, b) => a - b);
    const budgets = shares.map((share) => [share, share === OWN ? "Default" : percent(share)]);
    radios(form.querySelector("#methods"), "method", methods, method);
    radios(form.querySelector("#budgets"), "keep", budgets, keep);
    form.addEventListener("change", ({ target }) => {
      this.#refresh();
      if (target.name !== "memory") this.dispatchEvent(new Event("change"));
    });
    this.#refresh();
  }

  // The field "omnizip" of a configuration.
  get method() {
    const { method, keep } = this.#chosen;
    const own = this.#about.default;
    // The server has compiled its own already.
    if (method === own.method && keep === String(own.settings.keep ?? OWN)) return own;
    return { method, settings: method === "all" || keep === OWN ? {} : { keep: Number(keep) } };
  }

  get memory() {
    return this.#form.elements.memory.value;
  }

  get words() {
    const { method, keep } = this.#chosen;
    const name = NAMES[method] ?? method;
    return method === "all" || keep === OWN ? name : `${name}, ${percent(keep)}`;
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
