// What the server says about itself, and the socket of a live session.

const PATH = "/v1/video/chat/stream";
const CROWDED = 2 ** 20; // bytes on their way; pictures beyond are left out

export class Refused extends Error {}

// The model, its methods, its cache; a wrong key, or none where one is wanted, is Refused.
export async function about(key) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch("/v1/models", { headers });
  if (answer.status === 401) throw new Refused("the key is not right");
  if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
  const [model] = (await answer.json()).data;
  return { name: model.id, ...model.omnizip };
}

// One session: an event for every message, by its type, with the message as its detail. "closed"
// comes when the socket has gone, whoever closed it.
export class Live extends EventTarget {
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

  // Until messages can be sent.
  opened() {
    return new Promise((resolve, reject) => {
      this.#socket.addEventListener("open", resolve, { once: true });
      this.#socket.addEventListener("close", () => reject(new Error("the server cannot be reached")));
    });
  }

  // The session has begun, and goes on.
  get isLive() {
    return this.#configured && this.#socket.readyState === WebSocket.OPEN;
  }

  get isCrowded() {
    return this.#socket.bufferedAmount > CROWDED;
  }

  // How it reads and answers: first of all, and again when that changes.
  configure(config) {
    this.#configured = true;
    this.send("session.config", config);
  }

  send(type, message) {
    if (this.isLive) this.#socket.send(JSON.stringify({ type, ...message }));
  }

  close() {
    this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close();
  }
}

function base64url(text) {
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
