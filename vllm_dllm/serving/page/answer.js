import { Canvas } from "./canvas.js";
import { Denoising } from "./denoising.js";
import { arrange, make } from "./dom.js";

const COUNTERS = {
  step: "steps in block",
  forwards: "forwards",
  tokens: "tokens",
  perForward: "tokens / forward",
  perSecond: "tokens / s",
};
/** A replay takes about this long, but no step is shorter or longer than these. */
const REPLAY = { total: 6000, shortest: 30, longest: 350 };

/** One answer: its canvas, counters and blocks, and afterwards its replay. */
export class Answer {
  constructor(texts) {
    this.denoising = new Denoising();
    this.texts = texts;
    this.canvas = new Canvas(texts);
    this.canvas.element.setAttribute("aria-hidden", "true");
    this.counters = make("dl", { class: "counters" });
    for (const [name, label] of Object.entries(COUNTERS)) {
      const value = make("dd", { "data-counter": name }, "–");
      this.counters.append(make("div", {}, value, make("dt", {}, label)));
    }
    this.blocks = make("div", { class: "blocks", role: "img", "aria-label": "blocks" });
    this.note = make("p", { class: "note", hidden: true });
    this.replay = make("div", { class: "replay", hidden: true });
    this.element = make(
      "article",
      { class: "answer running", "data-part": "answer" },
      this.canvas.element,
      this.note,
      this.blocks,
      this.counters,
      this.replay,
    );
    this.started = performance.now();
    this.seconds = null;
    this.shown = null;
    this.pending = 0;
  }

  get text() {
    return this.denoising.text;
  }

  take(event) {
    this.texts.learn(event);
    this.denoising.take(event);
    this.draw();
  }

  /** Ends the answer; `note` says why, if not for its natural end. */
  end(note = "", isError = false) {
    this.seconds = (performance.now() - this.started) / 1000;
    this.element.classList.remove("running");
    this.canvas.element.removeAttribute("aria-hidden");
    this.note.textContent = note;
    this.note.hidden = !note;
    this.note.classList.toggle("error", isError);
    if (isError) this.note.setAttribute("role", "alert");
    this.element.classList.toggle("empty", !this.denoising.frames.length);
    if (this.denoising.frames.length > 1) this.offerReplay();
    this.draw();
  }

  /** Draws before the next repaint; a server is often faster than the screen. */
  draw() {
    this.pending ||= requestAnimationFrame(() => {
      this.pending = 0;
      this.drawFrame(this.shown ?? this.denoising.last);
    });
  }

  drawFrame(frame) {
    this.canvas.draw(this.denoising.pieces, frame);
    const isOver = this.seconds !== null && frame === this.denoising.last;
    this.canvas.element.classList.toggle("settled", isOver);
    this.drawBlocks(frame);
    const seconds = this.seconds ?? (performance.now() - this.started) / 1000;
    this.count({
      step: frame.blocks[frame.front]?.steps ?? "–",
      forwards: frame.forwards,
      tokens: frame.tokens,
      perForward: frame.forwards ? (frame.tokens / frame.forwards).toFixed(2) : "–",
      perSecond: (this.denoising.last.tokens / seconds).toFixed(1),
    });
  }

  count(values) {
    for (const { children } of this.counters.children) {
      const [shown, label] = children;
      const name = shown.dataset.counter;
      shown.textContent = values[name];
      const plural = COUNTERS[name];
      label.textContent = values[name] === 1 ? plural.replace(/s\b/, "") : plural;
    }
  }

  drawBlocks({ blocks, front }) {
    const nodes = [...this.blocks.children].slice(0, blocks.length);
    while (nodes.length < blocks.length) nodes.push(make("span", {}, make("i")));
    arrange(this.blocks, nodes);
    blocks.forEach(({ size, masks, steps }, index) => {
      const node = nodes[index];
      node.style.flexGrow = size;
      node.classList.toggle("behind", index > front);
      node.title = `block ${index + 1}: ${size} tokens, ${steps} steps`;
      node.firstChild.style.width = `${(100 * (size - masks)) / (size || 1)}%`;
    });
    const behind = Math.max(0, blocks.length - front - 1);
    const label =
      `block ${blocks.length - behind}, ${blocks[front]?.masks ?? 0} masks left` +
      (behind ? `; ${behind} behind it` : "");
    this.blocks.setAttribute("aria-label", label);
  }

  offerReplay() {
    const { frames } = this.denoising;
    const slider = make("input", {
      type: "range",
      min: 0,
      max: frames.length - 1,
      value: frames.length - 1,
      "aria-label": "Step shown",
    });
    const button = make("button", { type: "button", class: "quiet" }, "Replay");
    const pace = REPLAY.total / frames.length;
    const delay = Math.min(REPLAY.longest, Math.max(REPLAY.shortest, pace));
    let timer = null;
    const show = (index) => {
      slider.value = index;
      slider.ariaValueText = `step ${index + 1} of ${frames.length}`;
      this.shown = frames[index];
      this.draw();
    };
    const pause = () => {
      clearInterval(timer);
      timer = null;
      button.textContent = "Replay";
    };
    const play = () => {
      button.textContent = "Pause";
      if (+slider.value === frames.length - 1) show(0);
      timer = setInterval(() => {
        show(+slider.value + 1);
        if (+slider.value === frames.length - 1) pause();
      }, delay);
    };
    slider.addEventListener("input", () => {
      pause();
      show(+slider.value);
    });
    button.addEventListener("click", () => (timer === null ? play() : pause()));
    this.replay.append(button, slider);
    this.replay.hidden = false;
  }
}
