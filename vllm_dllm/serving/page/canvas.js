import { arrange, make } from "./dom.js";

/** Steps until a new token looks like the others. */
const FRESH = 4;

/** Draws a frame: emitted text, then a cell for each position of the canvas. */
export class Canvas {
  constructor(texts) {
    this.texts = texts;
    this.settled = document.createTextNode("");
    this.nodes = new Map();
    this.element = make("div", { class: "canvas", "data-part": "canvas" }, this.settled);
  }

  draw(pieces, frame) {
    const emitted = pieces.slice(0, frame.pieces);
    const isPlain = (piece) => !piece.forced && frame.index - piece.frame >= FRESH;
    const plain = emitted.findIndex((piece) => !isPlain(piece));
    const rest = plain < 0 ? [] : emitted.slice(plain);
    const settled = plain < 0 ? emitted : emitted.slice(0, plain);
    this.settled.data = settled.map((piece) => piece.text).join("");
    const old = this.nodes;
    this.nodes = new Map();
    const keep = (key) => {
      const node = old.get(key) ?? document.createElement("span");
      this.nodes.set(key, node);
      return node;
    };
    arrange(this.element, [
      this.settled,
      ...rest.map((piece) => this.piece(keep(piece), piece, frame)),
      ...frame.cells.map((cell) => this.cell(keep(cell.position), cell, frame)),
    ]);
  }

  piece(node, piece, frame) {
    const names = ["emitted", age(frame.index - piece.frame)];
    if (piece.forced) names.push("forced");
    return dress(node, names.join(" "), piece.text);
  }

  cell(node, { position, token, since, revised }, frame) {
    const behind = position >= frame.ends[frame.front] ? "behind" : "";
    if (token < 0) return dress(node, `mask ${behind}`, "\u00a0");
    const steps = frame.index - since;
    const names = ["token", age(steps), behind];
    if (revised && steps < FRESH) names.push("revised");
    const text = this.texts.of(token);
    const shown = visible(text);
    if (shown !== text) names.push("sign");
    return dress(node, names.join(" "), shown);
  }
}

/** A token's text, with signs for what cannot be seen. */
function visible(text) {
  // The end of a text or of a turn.
  if (/^<[|｜].*[|｜]>$/.test(text)) return "∎";
  if (/^ +$/.test(text)) return text.replaceAll(" ", "␣");
  // A line is broken when its end is emitted: until then a block keeps its shape.
  return text.replaceAll("\n", "↵") || "·";
}

function age(steps) {
  return steps < FRESH ? `age${Math.max(0, steps)}` : "";
}

function dress(node, name, text) {
  if (node.className !== name) node.className = name;
  if (node.textContent !== text) node.textContent = text;
  return node;
}
