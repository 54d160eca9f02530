// Sends audio as 16 bit mono samples in chunks of 0.1 s; started and stopped by a message.

const SIZE = 1600;

class Pcm extends AudioWorkletProcessor {
  #samples = new Int16Array(SIZE);
  #filled = 0;
  #on = false;
  #ended = false;

  constructor() {
    super();
    this.port.onmessage = ({ data }) => {
      this.#on = data;
      if (!data) this.#end();
    };
  }

  process([channels]) {
    if (!this.#on) return !this.#ended;
    const length = channels[0]?.length ?? 128; // nothing connected is silence
    for (let i = 0; i < length; i++) {
      let value = 0;
      for (const channel of channels) value += channel[i] / channels.length;
      this.#samples[this.#filled++] = Math.max(-1, Math.min(1, value)) * 32767;
      if (this.#filled === SIZE) this.#send();
    }
    return true;
  }

  #end() {
    this.#send();
    this.#ended = true;
  }

  #send() {
    this.port.postMessage(this.#samples.slice(0, this.#filled));
    this.#filled = 0;
  }
}

registerProcessor("pcm", Pcm);
