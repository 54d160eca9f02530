// A camera, or a file that plays, as pictures and sound on one clock.
//
// Events: "picture" with { time, bitmap, data } four times a second, "sound" with { time, samples,
// data }, 16 kHz, and "ended". Times are seconds since the beginning.

const RATE = 16_000;
const PICTURES = 4; // a second; the model takes two
const SIDE = 640; // pixels of the longer side, at most
const QUALITY = 0.92;

export class Capture extends EventTarget {
  hasPicture = true;
  hasSound = false;
  silence = "there is no microphone"; // the reason, where there is no sound
  #video;
  #stream = null; // of a camera
  #url = null; // of a file
  #audio = null;
  #pcm = null;
  #began = null; // of a camera's clock, milliseconds
  #next = 0; // time of the next picture
  #sent = 0; // samples
  #drawing = false;
  #stopped = false;

  constructor(video) {
    super();
    this.#video = video;
  }

  async openCamera() {
    if (!navigator.mediaDevices) {
      throw new Error("browsers lend a camera to pages of https or localhost only");
    }
    const video = { facingMode: { ideal: "environment" }, width: { ideal: SIDE } };
    // What makes voices clear takes other sounds away.
    const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({ video, audio });
    } catch (error) {
      if (error.name !== "NotFoundError") throw new Error(`no camera: ${error.message}`);
      this.#stream = await navigator.mediaDevices.getUserMedia({ video }); // without a microphone
    }
    this.#check();
    this.#video.srcObject = this.#stream;
    this.#video.muted = true;
    await this.#loaded();
    if (this.#stream.getAudioTracks().length) {
      await this.#listen((audio) => audio.createMediaStreamSource(this.#stream), false);
    }
  }

  async openFile(blob) {
    this.#check();
    this.#url = URL.createObjectURL(blob);
    this.#video.srcObject = null;
    this.#video.src = this.#url;
    this.#video.muted = false;
    await this.#loaded();
    this.hasPicture = this.#video.videoWidth > 0;
    await this.#listen(() => sourceOf(this.#video), true);
  }

  // From here on pictures and sound come.
  async start() {
    this.#check();
    this.#video.onended = () => this.#finish();
    await this.#video.play();
    this.#began = performance.now();
    if (this.#stream === null) this.#silence(this.#video.currentTime); // that has passed already
    this.#pcm?.port.postMessage(true);
    if (this.hasPicture) this.#watch();
  }

  stop() {
    if (this.#stopped) return;
    this.#stopped = true;
    this.#video.onended = null;
    this.#video.pause();
    this.#pcm?.port.postMessage(false);
    this.#release();
  }

  // The player belongs to the newest source; one that was stopped before it could begin lets go.
  #check() {
    if (!this.#stopped) return;
    this.#release();
    throw new Error("another source has begun");
  }

  #release() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    if (this.#url) URL.revokeObjectURL(this.#url);
  }

  #loaded() {
    return new Promise((resolve, reject) => {
      this.#video.onloadeddata = resolve;
      this.#video.onerror = () => reject(new Error("this browser cannot play the file"));
    });
  }

  // Sound goes to the page, and that of files to the speakers, too.
  async #listen(source, aloud) {
    try {
      this.#audio = await context();
      this.#pcm = new AudioWorkletNode(this.#audio, "pcm", { numberOfOutputs: 0 });
      const node = source(this.#audio);
      node.connect(this.#pcm);
      if (aloud) node.connect(this.#audio.destination);
      this.#pcm.port.onmessage = ({ data }) => this.#hear(data);
      this.hasSound = true;
    } catch (error) {
      this.silence = error.message;
    }
  }

  #hear(samples) {
    if (this.#stopped || !samples.length) return;
    this.#sent += samples.length;
    const data = base64(new Uint8Array(samples.buffer));
    this.dispatchEvent(new CustomEvent("sound", { detail: { time: this.#sent / RATE, samples, data } }));
  }

  #silence(until) {
    if (this.hasSound) this.#hear(new Int16Array(Math.max(0, Math.round(until * RATE) - this.#sent)));
  }

  #watch() {
    const video = this.#video;
    const next = video.requestVideoFrameCallback
      ? (call) => video.requestVideoFrameCallback(call)
      : (call) => requestAnimationFrame((now) => call(now, { mediaTime: video.currentTime }));
    const look = (now, { mediaTime }) => {
      if (this.#stopped) return;
      this.#see(this.#stream ? (now - this.#began) / 1000 : mediaTime);
      next(look);
    };
    next(look);
  }

  async #see(time) {
    if (this.#drawing || time < this.#next) return;
    this.#next = Math.floor(time * PICTURES + 1) / PICTURES;
    this.#drawing = true;
    try {
      const { videoWidth: width, videoHeight: height } = this.#video;
      const scale = Math.min(1, SIDE / Math.max(width, height));
      const size = [Math.round(width * scale), Math.round(height * scale)];
      const canvas = new OffscreenCanvas(...size);
      canvas.getContext("2d").drawImage(this.#video, 0, 0, ...size);
      const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: QUALITY });
      const data = await dataUrl(blob);
      const bitmap = canvas.transferToImageBitmap();
      if (this.#stopped) return;
      this.dispatchEvent(new CustomEvent("picture", { detail: { time, bitmap, data } }));
    } finally {
      this.#drawing = false;
    }
  }

  // The last window is complete when a picture and a little sound follow on it.
  async #finish() {
    const end = this.#video.duration;
    this.#pcm?.port.postMessage(false);
    await new Promise((resolve) => setTimeout(resolve, 100)); // for what is on its way
    if (this.#stopped) return;
    this.#silence(end + 0.01);
    if (this.hasPicture) {
      this.#next = 0;
      await this.#see(end);
    }
    this.stop();
    this.dispatchEvent(new CustomEvent("ended"));
  }
}

// One for the page; it resamples whatever comes.
let shared = null;
async function context() {
  if (!window.AudioWorkletNode) {
    throw new Error("browsers give sound to pages of https or localhost only");
  }
  if (shared === null) {
    const made = new AudioContext({ sampleRate: RATE });
    await made.audioWorklet.addModule("/page/pcm.js");
    shared = made;
  }
  await shared.resume();
  return shared;
}

// An element can be made a source once only.
const sources = new WeakMap();
function sourceOf(video) {
  if (!sources.has(video)) sources.set(video, shared.createMediaElementSource(video));
  const source = sources.get(video);
  source.disconnect();
  return source;
}

function dataUrl(blob) {
  return new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.readAsDataURL(blob);
  });
}

function base64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 4096) {
    text += String.fromCharCode(...bytes.subarray(i, i + 4096));
  }
  return btoa(text);
}
