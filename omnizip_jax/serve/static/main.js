// The page: one source, one session, and what is shown of them.

import { Capture } from "./capture.js";
import { element } from "./element.js";
import { Figures } from "./figures.js";
import { clock } from "./format.js";
import { enter } from "./key.js";
import { Overlay } from "./overlay.js";
import { Pictures } from "./pictures.js";
import { Live } from "./server.js";
import { Settings } from "./settings.js";
import { Strip } from "./strip.js";
import { Talk } from "./talk.js";
import { Timeline } from "./timeline.js";

const SMALL = "The small model knows six colours, four shapes and six sounds. Ask as in the sample.";
const TOKENS_PER_SECOND = 25; // of sound
const ANSWER = 128; // tokens, at most

const at = (id) => document.getElementById(id);
const say = (words) => (at("status").textContent = words);

const { key, about } = await enter(at("key")).catch((error) => {
  say(`The server cannot be reached: ${error.message}`);
  throw error;
});
const seconds = about.window_seconds;
const settings = new Settings(at("settings"), about);
const talk = new Talk(at("talk"));
const overlay = new Overlay(at("kept"), at("kept-facts"));
const strip = new Strip(at("sound"), at("sound-facts"));
const timeline = new Timeline(at("timeline"), at("remembered"), seconds);
const figures = new Figures(about, {
  tokens: at("tokens"),
  cache: at("cache"),
  work: at("work"),
  time: at("time"),
});

let live = null;
let capture = null;
let pictures = new Pictures(seconds);
let reading = settings.words; // how windows are read now
let wanted = []; // how they will be, once the server says so
let time = 0; // that it has been shown
let questions = []; // to try, each since a moment of the clip

at("model").textContent = about.name;
at("hint").textContent = about.name === "small" ? SMALL : "";
show("idle");

const begin = {
  sample: () => begins(openSample),
  camera: () => begins((capture) => capture.openCamera()),
  file: () => at("picker").click(),
};
for (const button of document.querySelectorAll("[data-source]")) {
  button.addEventListener("click", begin[button.dataset.source]);
}
at("picker").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  if (file) begins((capture) => capture.openFile(file));
  target.value = ""; // the same file may be chosen again
});
at("stop").addEventListener("click", () => {
  capture?.stop();
  show("ended");
  say("Stopped. It remembers: ask.");
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) begins((capture) => capture.openFile(file));
});
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask(at("question").value.trim());
  at("question").value = "";
});
settings.addEventListener("change", () => {
  if (!live?.isLive) return;
  at("settings-hint").textContent = "Compiling, if it is the first time; what it remembers stays.";
  wanted.push(settings.words);
  live.configure({ max_tokens: ANSWER, omnizip: settings.method });
});
addEventListener("resize", () => strip.draw());

async function openSample(capture) {
  const [file, facts] = await Promise.all([
    fetch("/page/sample.mp4").then((answer) => answer.blob()),
    fetch("/page/sample.json").then((answer) => answer.json()),
  ]);
  await capture.openFile(file);
  suggest(facts.questions);
}

// A new source is a new session: what was remembered of the one before is gone.
async function begins(open) {
  end();
  show("running");
  say("Opening");
  suggest([]);
  const [source, session] = [new Capture(at("video")), new Live(key)];
  [capture, live] = [source, session];
  listen(session);
  follow(source, session);
  try {
    await Promise.all([open(source), session.opened()]);
    if (live !== session) return; // another one has begun meanwhile
    const { hasPicture: video, hasSound: audio } = source;
    const omnizip = { ...settings.method, memory: settings.memory, video, audio };
    session.configure({ max_tokens: ANSWER, omnizip });
    reading = settings.words;
    await source.start();
    say(!audio ? `No sound: ${source.silence}` : video ? "Watching and listening" : "Listening");
  } catch (error) {
    if (live === session) {
      end();
      show("idle");
      say(`It could not begin: ${error.message}`);
    }
  }
}

function end() {
  capture?.stop();
  live?.close();
  capture = live = null;
  pictures = new Pictures(seconds);
  [time, wanted] = [0, []];
  for (const part of [overlay, strip, timeline, figures, talk]) part.clear();
  at("clock").textContent = "";
  at("settings-hint").textContent = "";
}

function follow(source, session) {
  source.addEventListener("picture", ({ detail }) => {
    passed(detail.time);
    pictures.add(detail.time, detail.bitmap);
    if (!session.isCrowded) {
      session.send("video.frame", { data: detail.data, pts_ms: Math.round(1000 * detail.time) });
    }
  });
  source.addEventListener("sound", ({ detail }) => {
    passed(detail.time);
    strip.hear(detail.samples);
    session.send("audio.chunk", { data: detail.data });
  });
  source.addEventListener("ended", () => {
    show("ended");
    say("The end. It remembers: ask.");
  });
}

function passed(now) {
  time = Math.max(time, now);
  at("clock").textContent = clock(time);
  offer();
}

function listen(session) {
  const on = (type, call) => session.addEventListener(type, ({ detail }) => call(detail));
  on("window.read", (window) => {
    const shown = pictures.of(window);
    overlay.show(window, shown);
    strip.read(window, TOKENS_PER_SECOND * seconds);
    timeline.read(window, shown);
    figures.read(window, reading);
  });
  on("window.skipped", (window) => {
    timeline.skipped(window);
    say(`Skipped so far: ${window.skipped}. Windows come faster than the device takes them.`);
  });
  on("method.changed", ({ number }) => {
    reading = wanted.shift();
    timeline.mark(reading);
    at("settings-hint").textContent = `Since ${clock(number * seconds)}: ${reading}.`;
  });
  on("response.text.delta", (message) => talk.more(message));
  on("response.text.done", (message) => talk.done(message));
  on("error", ({ message }) => {
    talk.failed(message);
    at("settings-hint").textContent = "";
    wanted = [];
    say(message);
  });
  on("closed", () => {
    capture?.stop();
    talk.failed("the session has ended");
    show("ended");
    if (!at("status").textContent.includes("session")) say("The session has ended.");
  });
}

function ask(question) {
  if (!question) return;
  if (!live?.isLive) return say("Show it something first.");
  talk.ask(question, time);
  timeline.mark("asked");
  live.send("video.query", { text: question });
}

function suggest(some) {
  questions = some;
  talk.know(some);
  at("suggestions").replaceChildren();
}

// Questions about what has happened.
function offer() {
  for (const { text } of questions.filter(({ since }) => since <= time)) {
    at("suggestions").append(
      element("button", { type: "button", onclick: ({ target }) => tried(target) }, text),
    );
  }
  questions = questions.filter(({ since }) => since > time);
}

// A question that was tried makes room.
function tried(button) {
  ask(button.textContent);
  (button.nextElementSibling ?? at("talk")).focus({ preventScroll: true, focusVisible: false });
  button.remove();
}

function show(state) {
  document.body.dataset.state = state;
  at("stop").hidden = state !== "running";
  at("memories").disabled = state === "running";
}
