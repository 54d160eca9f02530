// The log of questions and answers; screen readers read an answer when it is complete.

import { element } from "./dom.js";
import { clock, count, milliseconds } from "./format.js";

export class Conversation {
  #log;
  #answers = new Map(); // that are being generated, by the ID of their request
  #references = new Map(); // right answers by question

  constructor(log) {
    this.#log = log;
  }

  clear() {
    this.#log.replaceChildren();
    this.#answers.clear();
  }

  setReference(questions) {
    this.#references = new Map(questions.map(({ text, answer }) => [text, answer]));
  }

  ask(id, question, time) {
    const answer = element("p", { className: "answer" });
    const facts = element("p", { className: "facts" }, "generating");
    const turn = element(
      "article",
      { "aria-busy": "true" },
      element("p", { className: "question" }, question),
      answer,
      facts,
    );
    this.#log.append(turn);
    this.#scroll();
    this.#answers.set(id, { turn, answer, facts, question, time, asked: performance.now() });
  }

  append({ request_id, delta }) {
    const turn = this.#answers.get(request_id);
    if (!turn) return;
    turn.first ??= performance.now();
    turn.answer.append(delta);
    this.#scroll();
  }

  finish(message) {
    const turn = this.#answers.get(message.request_id);
    if (!turn) return;
    const { answer, question, time, asked, first } = turn;
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
    this.end(message.request_id, facts.join(" · "));
  }

  // Ends an answer that is not complete; returns its question, if there is such an answer.
  end(id, text) {
    const turn = this.#answers.get(id);
    if (!turn) return null;
    turn.facts.textContent = text;
    turn.turn.setAttribute("aria-busy", "false");
    this.#answers.delete(id);
    this.#scroll();
    return turn.question;
  }

  // Ends all answers; returns their questions.
  endAll(text) {
    return [...this.#answers.keys()].map((id) => this.end(id, text));
  }

  #scroll() {
    this.#log.scrollTop = this.#log.scrollHeight;
  }
}
