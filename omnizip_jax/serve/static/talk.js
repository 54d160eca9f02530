// Questions and answers; an answer is read out when it is complete.

import { element } from "./element.js";
import { clock, count, milliseconds } from "./format.js";

export class Talk {
  #log;
  #answer = null; // that is coming
  #truths = new Map(); // answers that are known, by question

  constructor(log) {
    this.#log = log;
  }

  clear() {
    this.#log.replaceChildren();
    this.#answer = null;
  }

  know(questions) {
    this.#truths = new Map(questions.map(({ text, answer }) => [text, answer]));
  }

  ask(question, time) {
    const said = element("p", { className: "answer" });
    const facts = element("p", { className: "facts" }, "thinking");
    const turn = element(
      "article",
      { "aria-busy": "true" },
      element("p", { className: "question" }, question),
      said,
      facts,
    );
    this.#end("left unfinished");
    this.#log.append(turn);
    this.#log.scrollTop = this.#log.scrollHeight;
    this.#answer = { turn, said, facts, question, time, asked: performance.now() };
  }

  more({ delta }) {
    if (this.#answer === null) return;
    this.#answer.first ??= performance.now();
    this.#answer.said.append(delta);
    this.#log.scrollTop = this.#log.scrollHeight;
  }

  done(message) {
    if (this.#answer === null) return;
    const { said, question, time, asked, first } = this.#answer;
    said.textContent = message.text.trim() || "(nothing)";
    const all = message.audio + message.video;
    const kept = message.audio_kept + message.video_kept;
    const facts = [
      `at ${clock(time)}`,
      `${count(kept)} of ${count(all)} tokens`,
      `in ${milliseconds(((first ?? performance.now()) - asked) / 1000)}`,
    ];
    const truth = this.#truths.get(question);
    if (truth) {
      const right = truth === message.text.trim();
      said.classList.add(right ? "right" : "wrong");
      facts.unshift(right ? "right" : `it was: ${truth}`);
    }
    this.#end(facts.join(" · "));
  }

  failed(words) {
    this.#end(words);
  }

  #end(words) {
    if (this.#answer === null) return;
    this.#answer.facts.textContent = words;
    this.#answer.turn.setAttribute("aria-busy", "false");
    this.#answer = null;
    this.#log.scrollTop = this.#log.scrollHeight;
  }
}
