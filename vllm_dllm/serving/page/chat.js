import { Answer } from "./answer.js";
import { make } from "./dom.js";
import { Settings } from "./settings.js";

/** Ends that need a word, by `finish_reason`. */
const REASONS = { length: "Cut off at the length limit." };

/** One column: settings, a conversation, and the answer that is being made. */
export class Chat {
  /** @param texts the texts of tokens
   *  @param announce says a line to screen readers */
  constructor(name, server, texts, announce) {
    this.name = name;
    this.server = server;
    this.texts = texts;
    this.announce = announce;
    this.messages = [];
    this.running = null;
    this.answer = null;
    this.settings = new Settings();
    this.log = make("div", {
      class: "log",
      role: "region",
      "aria-label": `Conversation ${name}`,
      tabindex: 0,
    });
    this.element = make(
      "section",
      { class: "column", "aria-label": `Column ${name}` },
      this.settings.element,
      this.log,
    );
    this.clear();
  }

  clear() {
    this.stop();
    this.running = null;
    this.messages = [];
    this.log.replaceChildren(welcome());
  }

  /** Takes over the conversation of another column, and its settings if it has none. */
  adopt(other) {
    this.clear();
    if (this.settings.isUnset) this.settings.copy(other.settings);
    this.messages = [...other.messages];
    if (this.messages.length) this.log.replaceChildren();
    for (const { role, content } of this.messages) {
      this.log.append(make("p", { class: role === "user" ? "user" : "past" }, content));
    }
  }

  stop() {
    this.running?.abort();
  }

  redraw() {
    this.answer?.draw();
  }

  /** Sends a message and shows the answer. Returns whether there was one. */
  async send(content, model, system) {
    const running = new AbortController();
    const answer = new Answer(this.texts);
    this.running = running;
    this.answer = answer;
    if (!this.messages.length) this.log.replaceChildren();
    this.log.append(make("p", { class: "user" }, content), answer.element);
    this.log.scrollTop = this.log.scrollHeight;
    const user = { role: "user", content };
    const first = system ? [{ role: "system", content: system }] : [];
    const messages = [...first, ...this.messages, user];
    let problem = null;
    try {
      const prompt = await this.server.promptOf(model, messages, running.signal);
      const fields = { model, prompt, ...this.settings.wishes };
      answer.started = performance.now();
      for await (const event of this.server.generate(fields, running.signal)) {
        const isAtEnd = this.isAtEnd();
        answer.take(event);
        if (isAtEnd) this.log.scrollTop = this.log.scrollHeight;
      }
    } catch (error) {
      problem = error;
    }
    const isCurrent = this.running === running;
    if (isCurrent) this.running = null;
    const isStopped = running.signal.aborted;
    if (isStopped) answer.end("Stopped.");
    else if (problem) answer.end(problem.message, true);
    else answer.end(REASONS[answer.denoising.finish]);
    this.log.scrollTop = this.log.scrollHeight;
    const isAnswered = !problem || answer.text !== "";
    if (isAnswered && isCurrent) {
      this.messages.push(user, { role: "assistant", content: answer.text });
    }
    if (isStopped) this.announce("Stopped.");
    else this.announce(problem ? "" : this.spoken(answer));
    return isAnswered || isStopped;
  }

  spoken(answer) {
    const { tokens, forwards } = answer.denoising.last;
    return `Answer ${this.name}: ${answer.text} (${tokens} tokens, ${forwards} forwards)`;
  }

  isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.log;
    return scrollHeight - scrollTop - clientHeight < 48;
  }
}

/** What an empty conversation shows: how to read the canvas. */
function welcome() {
  const line = (name, sample, text) =>
    make("li", {}, make("span", { class: name }, sample), text);
  return make(
    "div",
    { class: "welcome" },
    make("h2", {}, "Watch an answer denoise"),
    make(
      "ul",
      { class: "canvas" },
      line("mask", "\u00a0", "a mask: not decoded yet"),
      line("token age0", "new", "decoded in this step"),
      line("token", "held", "decoded, waiting for tokens on its left"),
      line("token sign", "∎", "the end, decoded before the rest"),
      line("token revised", "edit", "replaced by a better token"),
      line("", "text", "emitted: it stays as it is"),
      line("forced", "{", "emitted where a schema left no choice"),
    ),
  );
}
