// The model of the server, and the WebSocket of a live session.

const PATH = "/v1/video/chat/stream";
const MAX_BUFFERED = 2 ** 20; // bytes to send; beyond it frames are skipped
const RETRY_SECONDS = [0, 1, 2, 4, 8]; // before each attempt to connect again; then the last

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

// Calls a function until it succeeds, with pauses; gives up when `stopped` is true.
export async function retry(call, stopped, onError) {
  for (let attempt = 0; !stopped(); attempt++) {
    const seconds = RETRY_SECONDS[Math.min(attempt, RETRY_SECONDS.length - 1)];
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    if (stopped()) return null;
    try {
      return await call();
    } catch (error) {
      if (error instanceof Unauthorized) throw error;
      onError(error);
    }
  }
  return null;
}

// Dispatches an event for every message, named by its type, and "closed" when the connection ends.
// Messages about a request, errors included, have the `request_id` that its function returned.
export class LiveSession extends EventTarget {
  reconnecting = null; // a promise while the page connects again
  #key;
  #socket = null;
  #begun = false; // on this connection
  #requests = 0;
  #name = null; // under which the server stores the session
  #closed = false;

  constructor(key) {
    super();
    this.#key = key;
  }

  // Resolves when the session can be configured.
  connect() {
    const url = new URL(PATH, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const protocols = ["omnizip", ...(this.#key ? [`omnizip.key.${base64url(this.#key)}`] : [])];
    const socket = (this.#socket = new WebSocket(url, protocols));
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "session.created") this.#name = message.session_id;
      this.#dispatch(message.type, message);
    };
    socket.onclose = () => {
      if (this.#begun) this.#dispatch("closed", {});
      this.#begun = false;
    };
    return new Promise((resolve, reject) => {
      socket.addEventListener("open", resolve, { once: true });
      socket.addEventListener("close", () => reject(new Error("the server cannot be reached")));
    });
  }

  // Begins the session; later changes the method. Returns the request's ID.
  configure(config) {
    this.#begun = true;
    return this.#request("session.config", config);
  }

  // Continues the session on a new connection, or begins another one; resolves to whether it continues.
  async reconnect(config) {
    await fetchModel(this.#key); // an error that says why
    await this.connect();
    if (this.#closed) throw new Error("the session was closed");
    if (this.#name !== null) {
      const resume = { ...config, omnizip: { resume: this.#name } };
      const { type, code, message } = await this.#reply(this.#request("session.config", resume));
      if (type === "session.created") return (this.#begun = true);
      if (code >= 500) throw new Error(message);
    }
    this.configure(config);
    return false;
  }

  // Returns the ID of the request.
  ask(text) {
    return this.#request("video.query", { text });
  }

  send(type, message) {
    if (this.isOpen) this.#socket.send(JSON.stringify({ type, ...message }));
  }

  close() {
    this.#closed = true;
    const socket = this.#socket;
    // Browsers report a socket as failed that is closed while it connects.
    if (socket?.readyState === WebSocket.CONNECTING) socket.onopen = () => socket.close();
    else socket?.close();
  }

  get isOpen() {
    return this.#begun && this.#socket.readyState === WebSocket.OPEN;
  }

  get isCongested() {
    return this.#socket.bufferedAmount > MAX_BUFFERED;
  }

  #request(type, message) {
    const request_id = `page-${++this.#requests}`;
    this.#socket.send(JSON.stringify({ type, request_id, ...message }));
    return request_id;
  }

  #reply(id) {
    return new Promise((resolve, reject) => {
      for (const type of ["session.created", "error"]) {
        this.addEventListener(type, ({ detail }) => detail.request_id === id && resolve(detail));
      }
      this.#socket.addEventListener("close", () => reject(new Error("the connection was lost")));
    });
  }

  #dispatch(type, detail) {
    if (!this.#closed) this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

function base64url(text) {
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
