import { eventsOf } from "./sse.js";

/** The routes of the server that this page came from. */
export class Server {
  /** @param key gives the API key of the moment, or "" */
  constructor(key) {
    this.key = key;
    this.root = new URL("..", document.baseURI);
  }

  /** The ids of the models. */
  async models() {
    const response = await this.ask("v1/models");
    return (await response.json()).data.map((model) => model.id);
  }

  /** Token ids of the chat template applied to `messages`, up to the answer. */
  async promptOf(model, messages, signal) {
    const body = { model, messages, add_generation_prompt: true };
    const response = await this.ask("tokenize", body, signal);
    return (await response.json()).tokens;
  }

  async textOf(model, token) {
    const response = await this.ask("detokenize", { model, tokens: [token] });
    return (await response.json()).prompt;
  }

  /** Yields the events of an answer, every step's draft among them. */
  async *generate(fields, signal) {
    const body = { ...fields, stream: true, stream_mode: "denoise" };
    const response = await this.ask("v1/generate", body, signal);
    for await (const event of eventsOf(response)) {
      if (event.error) throw new Error(messageOf(event));
      yield event;
    }
  }

  async ask(path, body, signal) {
    const headers = {};
    if (this.key()) headers.Authorization = `Bearer ${this.key()}`;
    if (body) headers["Content-Type"] = "application/json";
    const response = await fetch(new URL(path, this.root), {
      method: body ? "POST" : "GET",
      body: body && JSON.stringify(body),
      headers,
      signal,
    });
    if (response.ok) return response;
    const answer = await response.json().catch(() => null);
    throw new Error(messageOf(answer) ?? `${response.status} ${response.statusText}`);
  }
}

/** What an error of vLLM or FastAPI says. */
function messageOf(answer) {
  const said = answer?.error?.message ?? answer?.error ?? answer?.detail;
  return said && typeof said !== "string" ? JSON.stringify(said) : said;
}

/** The texts of single tokens, for cells. Asked for once each, if no event has them. */
export class TokenTexts {
  /** @param ask gives a promise of the text of a token id
   *  @param onknown is called when a text has come */
  constructor(ask, onknown) {
    this.ask = ask;
    this.onknown = onknown;
    this.texts = new Map();
  }

  /** Takes what an event says: `token_texts` beside `token_ids`. */
  learn({ token_ids = [], token_texts }) {
    token_texts?.forEach((text, index) => this.texts.set(token_ids[index], text));
  }

  /** The text, or "" until it is known. */
  of(token) {
    if (!this.texts.has(token)) {
      this.texts.set(token, "");
      this.ask(token).then(
        (text) => {
          this.texts.set(token, text);
          this.onknown();
        },
        () => this.texts.delete(token),
      );
    }
    return this.texts.get(token);
  }
}
