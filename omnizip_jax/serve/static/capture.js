// Frames and audio of a camera or a file on one clock.
//
// Events: "frame" with { time, bitmap, data } four times a second, "audio" with { time, samples,
// data } at 16 kHz, and "ended". Times are seconds from the start.

const RATE = 16_000;
const FRAMES = 4; // per second; the model uses two
const MAX_SIDE = 640; // pixels
const QUALITY = 0.92;

export class Capture extends EventTarget {
  hasVideo = true;
  hasAudio = false;
  noAudioReason = "there is no microphone";
  #video;
  #stream = null; // of a camera
  #audio = null;
  #pcm = null;
  #started = null; // camera clock, milliseconds
  #next = 0; // time of the next frame
  #sent = 0; // samples
  #drawing = false;
  #stopped = false;

  constructor(video) {
    super();
    this.#video = video;
  }

  async openCamera() {
    if (!navigator.mediaDevices) {
      throw new Error("browsers allow cameras at https or localhost only");
    }
    const video = { facingMode: { ideal: "environment" }, width: { ideal: MAX_SIDE } };
    // Filters for speech would remove other sounds.
    const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({ video, audio });
    } catch (error) {
      if (error.name !== "NotFoundError") throw new Error(`no camera: ${error.message}`);
      this.#stream = await navigator.mediaDevices.getUserMedia({ video }); // without a microphone
    }
    this.#check();
    for (const track of this.#stream.getVideoTracks()) track.onended = () => this.#end();
    show(this.#video, this.#stream, null);
    this.#video.muted = true;
    await this.#loaded();
    if (this.#stream.getAudioTracks().length) {
      await this.#captureAudio((audio) => audio.createMediaStreamSource(this.#stream), false);
    }
  }

  async openFile(blob) {
    this.#check();
    show(this.#video, null, URL.createObjectURL(blob));
    this.#video.muted = false;
    await this.#loaded();
    this.hasVideo = this.#video.videoWidth > 0;
    await this.#captureAudio(() => sourceOf(this.#video), true);
  }

  // Starts the events.
  async start() {
    this.#check();
    this.#video.onended = () => this.#finish();
    await this.#video.play();
    this.#started = performance.now();
    if (this.#stream === null) this.#padSilence(this.#video.currentTime); // played already
    this.#pcm?.port.postMessage(true);
    if (this.hasVideo) this.#captureFrames();
  }

  stop() {
    if (this.#stopped) return;
    this.#stopped = true;
    this.#video.onended = null;
    this.#video.pause();
    this.#pcm?.port.postMessage(false);
    this.#release();
  }

  // Throws if another source was started meanwhile.
  #check() {
    if (!this.#stopped) return;
    this.#release();
    throw new Error("another source was started");
  }

  #release() {
    this.#stream?.getTracks().forEach((track) => track.stop());
  }

  #loaded() {
    return new Promise((resolve, reject) => {
      this.#video.onloadeddata = resolve;
      this.#video.onerror = () => reject(new Error("this browser cannot play the file"));
    });
  }

  // Captures the audio; that of files is also played.
  async #captureAudio(source, aloud) {
    try {
      this.#audio = await context();
      this.#pcm = new AudioWorkletNode(this.#audio, "pcm", { numberOfOutputs: 0 });
      const node = source(this.#audio);
      node.connect(this.#pcm);
      if (aloud) node.connect(this.#audio.destination);
      this.#pcm.port.onmessage = ({ data }) => this.#sendAudio(data);
      this.hasAudio = true;
    } catch (error) {
      this.noAudioReason = error.message;
    }
  }

  #sendAudio(samples) {
    if (this.#stopped || !samples.length) return;
    this.#sent += samples.length;
    const data = base64(new Uint8Array(samples.buffer));
    this.dispatchEvent(new CustomEvent("audio", { detail: { time: this.#sent / RATE, samples, data } }));
  }

  #padSilence(until) {
    if (this.hasAudio) this.#sendAudio(new Int16Array(Math.max(0, Math.round(until * RATE) - this.#sent)));
  }

  #captureFrames() {
    const video = this.#video;
    const next = video.requestVideoFrameCallback
      ? (call) => video.requestVideoFrameCallback(call)
      : (call) => requestAnimationFrame((now) => call(now, { mediaTime: video.currentTime }));
    const onFrame = (now, { mediaTime }) => {
      if (this.#stopped) return;
      this.#sendFrame(this.#stream ? (now - this.#started) / 1000 : mediaTime);
      next(onFrame);
    };
    next(onFrame);
  }

  async #sendFrame(time) {
    if (this.#drawing || time < this.#next) return;
    this.#next = Math.floor(time * FRAMES + 1) / FRAMES;
    this.#drawing = true;
    try {
      const { videoWidth: width, videoHeight: height } = this.#video;
      const scale = Math.min(1, MAX_SIDE / Math.max(width, height));
      const size = [Math.round(width * scale), Math.round(height * scale)];
      const canvas = new OffscreenCanvas(...size);
      canvas.getContext("2d").drawImage(this.#video, 0, 0, ...size);
      const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: QUALITY });
      const data = await dataUrl(blob);
      const bitmap = canvas.transferToImageBitmap();
      if (this.#stopped) return;
      this.dispatchEvent(new CustomEvent("frame", { detail: { time, bitmap, data } }));
    } finally {
      this.#drawing = false;
    }
  }

  // Sends a frame and audio past the end, which complete the last window.
  async #finish() {
    const end = this.#video.duration;
    this.#pcm?.port.postMessage(false);
    await new Promise((resolve) => setTimeout(resolve, 100)); // for pending audio
    if (this.#stopped) return;
    this.#padSilence(end + 0.01);
    if (this.hasVideo) {
      this.#next = 0;
      await this.#sendFrame(end);
    }
    this.#end();
  }

  #end() {
    if (this.#stopped) return;
    this.stop();
    this.dispatchEvent(new CustomEvent("ended"));
  }
}

// Shows a stream or the URL of a file. The file before is released when the element has left it.
function show(video, stream, url) {
  const before = video.src;
  video.srcObject = stream;
  if (url) video.src = url;
  else video.removeAttribute("src");
  if (before) URL.revokeObjectURL(before);
}

// The audio context of the page, which resamples to 16 kHz.
let shared = null;
async function context() {
  if (!window.AudioWorkletNode) {
    throw new Error("browsers allow audio capture at https or localhost only");
  }
  if (shared === null) {
    const made = new AudioContext({ sampleRate: RATE });
    await made.audioWorklet.addModule("/page/audio_worklet.js");
    shared = made;
  }
  await shared.resume();
  return shared;
}

// A phone call, or another tab, may have suspended it.
document.addEventListener("visibilitychange", () => shared?.resume());

// A video element can be made an audio source only once.
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
