// The model of the server, and the WebSocket of a live session.

const PATH = "/v1/video/chat/stream";
const MAX_BUFFERED = 2 ** 20; // bytes to send; beyond it frames are skipped

export class Unauthorized extends Error {}

// The model, its methods and its cache; throws Unauthorized without the right key.
export async function fetchModel(key) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch("/v1/models", { headers });
  if (answer.status === 401) throw new Unauthorized("wrong API key");
  if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
  const [model] = (await answer.json()).data;
  return { name: model.id, ...model.omnizip };
}

// Dispatches an event for every message, named by its type, and "closed" when the socket closes.
export class LiveSession extends EventTarget {
  #socket;
  #configured = false;

  constructor(key) {
    super();
    const url = new URL(PATH, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const protocols = ["omnizip", ...(key ? [`omnizip.key.${base64url(key)}`] : [])];
    this.#socket = new WebSocket(url, protocols);
    this.#socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      this.dispatchEvent(new CustomEvent(message.type, { detail: message }));
    };
    this.#socket.onclose = () => this.dispatchEvent(new CustomEvent("closed"));
  }

  // Resolves when messages can be sent.
  opened() {
    return new Promise((resolve, reject) => {
      this.#socket.addEventListener("open", resolve, { once: true });
      this.#socket.addEventListener("close", () => reject(new Error("the server cannot be reached")));
    });
  }

  get isOpen() {
    return this.#configured && this.#socket.readyState === WebSocket.OPEN;
  }

  get isCongested() {
    return this.#socket.bufferedAmount > MAX_BUFFERED;
  }

  // Sends the configuration: first, and again to change the method.
  configure(config) {
    this.#configured = true;
    this.send("session.config", config);
  }

  send(type, message) {
    if (this.isOpen) this.#socket.send(JSON.stringify({ type, ...message }));
  }

  close() {
    this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close();
  }
}

function base64url(text) {
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
