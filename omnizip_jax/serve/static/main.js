// Connects a source with a session and shows its events.

import { Capture } from "./capture.js";
import { element } from "./dom.js";
import { Statistics } from "./statistics.js";
import { clock } from "./format.js";
import { connect } from "./api_key.js";
import { Overlay } from "./overlay.js";
import { FrameBuffer } from "./frames.js";
import { LiveSession, retry } from "./session.js";
import { Settings } from "./settings.js";
import { AudioStrip } from "./audio_strip.js";
import { Conversation } from "./conversation.js";
import { Timeline } from "./timeline.js";

const SMALL = "The small model knows six colours, four shapes and six sounds. Ask as in the sample.";
const MAX_TOKENS = 128; // of an answer

const at = (id) => document.getElementById(id);
const setStatus = (text) => (at("status").textContent = text);

const { key, model } = await connect(at("key"), (error) =>
  setStatus(`The server cannot be reached, trying again: ${error.message}`),
);
setStatus("");
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
let requested = new Map(); // descriptions of methods that are not confirmed yet, by request ID
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
at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = at("question");
  const text = field.value;
  if ((await ask(text.trim())) && field.value === text) field.value = "";
});
settings.addEventListener("change", changeMethod);
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
    await Promise.all([open(source), opened.connect()]);
    if (session !== opened) return; // another source was started meanwhile
    const { hasVideo: video, hasAudio: audio } = source;
    opened.configure(configuration(source));
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

function configuration({ hasVideo: video, hasAudio: audio }) {
  const omnizip = { ...settings.method, memory: settings.memory, video, audio };
  return { max_tokens: MAX_TOKENS, omnizip };
}

// Connects again, and continues the session if the server has it still.
function reconnect(opened, source) {
  opened.reconnecting ??= retry(
    () => opened.reconnect(configuration(source)),
    () => session !== opened,
    (error) => setStatus(`Connecting again: ${error.message}`),
  )
    .then((continues) => {
      if (session !== opened) return;
      if (continues) {
        setStatus("Connected again; the session continues.");
        if (current !== settings.description) changeMethod();
      } else {
        for (const part of [timeline, statistics]) part.clear();
        current = settings.description;
        setStatus("Connected again with a new session, which does not know the stream so far.");
      }
    })
    .catch((error) => setStatus(`${error.message}: reload the page.`))
    .finally(() => (opened.reconnecting = null));
  return opened.reconnecting;
}

function changeMethod() {
  if (!session?.isOpen) return;
  at("settings-hint").textContent = "Changing; a new method is compiled first.";
  const id = session.configure({ max_tokens: MAX_TOKENS, omnizip: settings.method });
  requested.set(id, settings.description);
}

function end() {
  capture?.stop();
  session?.close();
  capture = session = null;
  frames = new FrameBuffer(seconds);
  [time, requested] = [0, new Map()];
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
    audioStrip.read(window);
    timeline.read(window, shown);
    statistics.read(window, current);
  });
  on("window.skipped", (window) => {
    timeline.skipped(window);
    setStatus(`Windows skipped so far: ${window.skipped}. They arrive faster than the server reads them.`);
  });
  on("stream.jump", ({ from_ms, to_ms }) => {
    const pause = Math.round((to_ms - from_ms) / 1000);
    audioStrip.jump(to_ms / 1000);
    timeline.mark(pause > 0 ? `pause of ${pause} s` : "clock set back");
    setStatus(pause > 0 ? `The source has paused for ${pause} s.` : "The source's clock went back.");
  });
  on("method.changed", ({ request_id }) => {
    current = requested.get(request_id);
    requested.delete(request_id);
    timeline.mark(current);
    at("settings-hint").textContent = `From ${clock(time)} on: ${current}.`;
  });
  on("response.text.delta", (message) => conversation.append(message));
  on("response.text.done", (message) => conversation.finish(message));
  on("response.cancelled", ({ request_id }) => conversation.end(request_id, "cancelled"));
  on("error", ({ message, request_id }) => {
    if (requested.delete(request_id)) {
      at("settings-hint").textContent = `${message} The method is still ${current}.`;
    }
    giveBack(conversation.end(request_id, message));
    setStatus(message);
  });
  on("closed", () => {
    giveBack(conversation.endAll("the connection was lost").at(-1));
    requested.clear();
    at("settings-hint").textContent = "";
    if (document.body.dataset.state === "running") reconnect(session, capture);
    else setStatus("The connection was closed; the next question opens it again.");
  });
}

// Resolves to whether the question was sent.
async function ask(question) {
  if (!question) return false;
  if (session === null) setStatus("Choose a source first.");
  else if (!session.isOpen) {
    if (document.body.dataset.state === "ended") await reconnect(session, capture);
    else setStatus("There is no connection yet; ask again in a moment.");
  }
  if (!session?.isOpen) return false;
  conversation.ask(session.ask(question), question, time);
  timeline.mark("question");
  return true;
}

// Puts a question that was not answered into the field again.
function giveBack(question) {
  at("question").value ||= question ?? "";
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

async function askSuggestion(button) {
  if (!(await ask(button.textContent))) return;
  (button.nextElementSibling ?? at("conversation")).focus({ preventScroll: true, focusVisible: false });
  button.remove();
}

function show(state) {
  document.body.dataset.state = state;
  at("stop").hidden = state !== "running";
  at("memories").disabled = state === "running";
}
