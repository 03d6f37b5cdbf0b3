/** How an answer came about: a frame for each step, from the events of /v1/generate.
 * Knows nothing of the page. */
export class Denoising {
  constructor() {
    /** Emitted text in pieces: {text, frame}. Only ever grows. */
    this.pieces = [];
    this.frames = [];
    this.frame = {
      index: -1,
      /** How many of `pieces` there are. */
      pieces: 0,
      /** Positions not emitted yet: {position, token (-1: mask), since, revised}. */
      cells: [],
      /** {size, masks, steps} */
      blocks: [],
      blockEnd: 0,
      tokens: 0,
      forwards: 0,
    };
    this.finish = null;
  }

  get last() {
    return this.frame;
  }

  get text() {
    return this.pieces.map((piece) => piece.text).join("");
  }

  take(event) {
    if (event.type === "append") this.append(event);
    if (event.type === "draft") this.draft(event);
    if (event.type === "finish") this.end(event);
  }

  // A step is an append, a draft, or both in this order: the draft completes it.
  append({ text, token_ids }) {
    this.pieces.push({ text, frame: this.frame.index + 1 });
    const tokens = this.frame.tokens + token_ids.length;
    this.frame = {
      ...this.frame,
      pieces: this.pieces.length,
      cells: this.frame.cells.filter((cell) => cell.position >= tokens),
      tokens,
    };
  }

  draft({ offset, token_ids, step, nfe }) {
    const index = this.frame.index + 1;
    const before = new Map(this.frame.cells.map((cell) => [cell.position, cell]));
    const cells = token_ids.map((token, i) => {
      const position = offset + i;
      const old = before.get(position);
      if (old?.token === token) return old;
      return { position, token, since: index, revised: old?.token >= 0 && token >= 0 };
    });
    const blockEnd = offset + token_ids.length;
    const { blocks, blockEnd: lastEnd } = this.frame;
    const isNew = blockEnd > lastEnd;
    const block = {
      size: isNew ? blockEnd - lastEnd : blocks.at(-1)?.size ?? 0,
      masks: token_ids.filter((token) => token < 0).length,
      steps: step + 1,
    };
    this.frame = {
      ...this.frame,
      index,
      cells,
      blocks: [...(isNew ? blocks.map(finished) : blocks.slice(0, -1)), block],
      blockEnd,
      forwards: nfe,
    };
    this.frames.push(this.frame);
  }

  end({ nfe, usage, finish_reason }) {
    const { tokens, blocks } = this.frame;
    this.finish = finish_reason;
    this.frame = {
      ...this.frame,
      index: this.frame.index + 1,
      cells: [],
      blocks: this.lastBlockDone(blocks, tokens, nfe),
      tokens: usage?.completion_tokens ?? tokens,
      forwards: nfe ?? this.frame.forwards,
    };
    this.frames.push(this.frame);
  }

  /** The step that ends an answer has no draft. */
  lastBlockDone(blocks, tokens, nfe) {
    if (!blocks.length) return [{ size: tokens, masks: 0, steps: nfe }];
    const last = blocks.at(-1);
    const steps = last.steps + Math.max(0, (nfe ?? 0) - this.frame.forwards);
    return [...blocks.slice(0, -1), { ...last, masks: 0, steps }];
  }
}

function finished(block) {
  return block.masks ? { ...block, masks: 0 } : block;
}
