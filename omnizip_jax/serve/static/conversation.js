// The log of questions and answers; screen readers read an answer when it is complete.

import { element } from "./dom.js";
import { clock, count, milliseconds } from "./format.js";

export class Conversation {
  #log;
  #answer = null; // that is being generated
  #references = new Map(); // right answers by question

  constructor(log) {
    this.#log = log;
  }

  clear() {
    this.#log.replaceChildren();
    this.#answer = null;
  }

  setReference(questions) {
    this.#references = new Map(questions.map(({ text, answer }) => [text, answer]));
  }

  ask(question, time) {
    const answer = element("p", { className: "answer" });
    const facts = element("p", { className: "facts" }, "generating");
    const turn = element(
      "article",
      { "aria-busy": "true" },
      element("p", { className: "question" }, question),
      answer,
      facts,
    );
    this.#end("cancelled");
    this.#log.append(turn);
    this.#log.scrollTop = this.#log.scrollHeight;
    this.#answer = { turn, answer, facts, question, time, asked: performance.now() };
  }

  append({ delta }) {
    if (this.#answer === null) return;
    this.#answer.first ??= performance.now();
    this.#answer.answer.append(delta);
    this.#log.scrollTop = this.#log.scrollHeight;
  }

  finish(message) {
    if (this.#answer === null) return;
    const { answer, question, time, asked, first } = this.#answer;
    answer.textContent = message.text.trim() || "(empty)";
    const all = message.audio + message.video;
    const kept = message.audio_kept + message.video_kept;
    const facts = [
      `at ${clock(time)}`,
      `${count(kept)} of ${count(all)} tokens`,
      `in ${milliseconds(((first ?? performance.now()) - asked) / 1000)}`,
    ];
    const reference = this.#references.get(question);
    if (reference) {
      const right = reference === message.text.trim();
      answer.classList.add(right ? "right" : "wrong");
      facts.unshift(right ? "right" : `right answer: ${reference}`);
    }
    this.#end(facts.join(" · "));
  }

  fail(text) {
    this.#end(text);
  }

  #end(text) {
    if (this.#answer === null) return;
    this.#answer.facts.textContent = text;
    this.#answer.turn.setAttribute("aria-busy", "false");
    this.#answer = null;
    this.#log.scrollTop = this.#log.scrollHeight;
  }
}
