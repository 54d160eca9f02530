// Connects a source with a session and shows its events.

import { Capture } from "./capture.js";
import { element } from "./dom.js";
import { Statistics } from "./statistics.js";
import { clock } from "./format.js";
import { connect } from "./api_key.js";
import { Overlay } from "./overlay.js";
import { FrameBuffer } from "./frames.js";
import { LiveSession } from "./session.js";
import { Settings } from "./settings.js";
import { AudioStrip } from "./audio_strip.js";
import { Conversation } from "./conversation.js";
import { Timeline } from "./timeline.js";

const SMALL = "The small model knows six colours, four shapes and six sounds. Ask as in the sample.";
const TOKENS_PER_SECOND = 25; // of audio
const MAX_TOKENS = 128; // of an answer

const at = (id) => document.getElementById(id);
const setStatus = (text) => (at("status").textContent = text);

const { key, model } = await connect(at("key")).catch((error) => {
  setStatus(`The server cannot be reached: ${error.message}`);
  throw error;
});
const seconds = model.window_seconds;
const settings = new Settings(at("settings"), model);
const conversation = new Conversation(at("conversation"));
const overlay = new Overlay(at("kept"), at("kept-facts"));
const audioStrip = new AudioStrip(at("sound"), at("sound-facts"));
const timeline = new Timeline(at("timeline"), at("remembered"), seconds);
const statistics = new Statistics(model, {
  tokens: at("tokens"),
  cache: at("cache"),
  work: at("work"),
  time: at("time"),
});

let session = null;
let capture = null;
let frames = new FrameBuffer(seconds);
let current = settings.description; // of the method in use
let requested = []; // descriptions of methods that the server has not confirmed yet
let time = 0; // of the source, seconds
let questions = []; // suggestions that are not shown yet

at("model").textContent = model.name;
at("hint").textContent = model.name === "small" ? SMALL : "";
show("idle");

const starters = {
  sample: () => start(openSample),
  camera: () => start((capture) => capture.openCamera()),
  file: () => at("picker").click(),
};
for (const button of document.querySelectorAll("[data-source]")) {
  button.addEventListener("click", starters[button.dataset.source]);
}
at("picker").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  if (file) start((capture) => capture.openFile(file));
  target.value = ""; // the same file may be chosen again
});
at("stop").addEventListener("click", () => {
  capture?.stop();
  show("ended");
  setStatus("Stopped. Questions about the stream are still possible.");
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) start((capture) => capture.openFile(file));
});
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask(at("question").value.trim());
  at("question").value = "";
});
settings.addEventListener("change", () => {
  if (!session?.isOpen) return;
  at("settings-hint").textContent = "Changing; a new method is compiled first.";
  requested.push(settings.description);
  session.configure({ max_tokens: MAX_TOKENS, omnizip: settings.method });
});
addEventListener("resize", () => audioStrip.draw());

async function openSample(capture) {
  const [file, facts] = await Promise.all([
    fetch("/page/sample.mp4").then((answer) => answer.blob()),
    fetch("/page/sample.json").then((answer) => answer.json()),
  ]);
  await capture.openFile(file);
  suggest(facts.questions);
}

// A new source starts a new session.
async function start(open) {
  end();
  show("running");
  setStatus("Opening");
  suggest([]);
  const [source, opened] = [new Capture(at("video")), new LiveSession(key)];
  [capture, session] = [source, opened];
  showEvents(opened);
  forward(source, opened);
  try {
    await Promise.all([open(source), opened.opened()]);
    if (session !== opened) return; // another source was started meanwhile
    const { hasVideo: video, hasAudio: audio } = source;
    const omnizip = { ...settings.method, memory: settings.memory, video, audio };
    opened.configure({ max_tokens: MAX_TOKENS, omnizip });
    current = settings.description;
    await source.start();
    setStatus(audio ? (video ? "Video and audio" : "Audio only") : `No audio: ${source.noAudioReason}`);
  } catch (error) {
    if (session === opened) {
      end();
      show("idle");
      setStatus(`The source could not be started: ${error.message}`);
    }
  }
}

function end() {
  capture?.stop();
  session?.close();
  capture = session = null;
  frames = new FrameBuffer(seconds);
  [time, requested] = [0, []];
  for (const part of [overlay, audioStrip, timeline, statistics, conversation]) part.clear();
  at("clock").textContent = "";
  at("settings-hint").textContent = "";
}

function forward(source, session) {
  source.addEventListener("frame", ({ detail }) => {
    advance(detail.time);
    frames.add(detail.time, detail.bitmap);
    if (!session.isCongested) {
      session.send("video.frame", { data: detail.data, pts_ms: Math.round(1000 * detail.time) });
    }
  });
  source.addEventListener("audio", ({ detail }) => {
    advance(detail.time);
    audioStrip.add(detail.samples);
    session.send("audio.chunk", { data: detail.data });
  });
  source.addEventListener("ended", () => {
    show("ended");
    setStatus("The source has ended. Questions about it are still possible.");
  });
}

function advance(now) {
  time = Math.max(time, now);
  at("clock").textContent = clock(time);
  showSuggestions();
}

function showEvents(session) {
  const on = (type, call) => session.addEventListener(type, ({ detail }) => call(detail));
  on("window.read", (window) => {
    const shown = frames.of(window);
    overlay.show(window, shown);
    audioStrip.read(window, TOKENS_PER_SECOND * seconds);
    timeline.read(window, shown);
    statistics.read(window, current);
  });
  on("window.skipped", (window) => {
    timeline.skipped(window);
    setStatus(`Windows skipped so far: ${window.skipped}. They arrive faster than the server reads them.`);
  });
  on("method.changed", ({ number }) => {
    current = requested.shift();
    timeline.mark(current);
    at("settings-hint").textContent = `From ${clock(number * seconds)} on: ${current}.`;
  });
  on("response.text.delta", (message) => conversation.append(message));
  on("response.text.done", (message) => conversation.finish(message));
  on("error", ({ message }) => {
    conversation.fail(message);
    at("settings-hint").textContent = "";
    requested = [];
    setStatus(message);
  });
  on("closed", () => {
    capture?.stop();
    conversation.fail("the session has ended");
    show("ended");
    if (!at("status").textContent.includes("session")) setStatus("The session has ended.");
  });
}

function ask(question) {
  if (!question) return;
  if (!session?.isOpen) return setStatus("Choose a source first.");
  conversation.ask(question, time);
  timeline.mark("question");
  session.send("video.query", { text: question });
}

function suggest(suggestions) {
  questions = suggestions;
  conversation.setReference(suggestions);
  at("suggestions").replaceChildren();
}

// Show the suggested questions that can be answered by now.
function showSuggestions() {
  for (const { text } of questions.filter(({ since }) => since <= time)) {
    at("suggestions").append(
      element("button", { type: "button", onclick: ({ target }) => askSuggestion(target) }, text),
    );
  }
  questions = questions.filter(({ since }) => since > time);
}

function askSuggestion(button) {
  ask(button.textContent);
  (button.nextElementSibling ?? at("conversation")).focus({ preventScroll: true, focusVisible: false });
  button.remove();
}

function show(state) {
  document.body.dataset.state = state;
  at("stop").hidden = state !== "running";
  at("memories").disabled = state === "running";
}
