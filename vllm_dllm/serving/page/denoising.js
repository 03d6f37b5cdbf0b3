/** How an answer came about: a frame for each step, from the events of /v1/generate.
 * Knows nothing of the page. */
export class Denoising {
  constructor() {
    /** Emitted text in pieces: {text, frame, forced}. Only ever grows. */
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
      /** Where each of them ends, and the one in front. */
      ends: [],
      front: 0,
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
  append({ text, token_ids, token_texts = [], forced = [] }) {
    const frame = this.frame.index + 1;
    // Bytes of a character may come in several tokens, and make no text by themselves.
    const isWhole = token_texts.join("") === text;
    const parts = isWhole && forced.length ? token_texts : [text];
    parts.forEach((part, i) => {
      const isForced = isWhole && forced.includes(this.frame.tokens + i);
      this.pieces.push({ text: part, frame, forced: isForced });
    });
    const tokens = this.frame.tokens + token_ids.length;
    this.frame = {
      ...this.frame,
      pieces: this.pieces.length,
      cells: this.frame.cells.filter((cell) => cell.position >= tokens),
      tokens,
    };
  }

  draft({ offset, token_ids, step, block_ends, nfe }) {
    const index = this.frame.index + 1;
    const before = new Map(this.frame.cells.map((cell) => [cell.position, cell]));
    const cells = token_ids.map((token, i) => {
      const position = offset + i;
      const old = before.get(position);
      if (old?.token === token) return old;
      return { position, token, since: index, revised: old?.token >= 0 && token >= 0 };
    });
    const { blocks: old, ends: oldEnds } = this.frame;
    const [first] = block_ends;
    const blocks = old.filter((_, i) => oldEnds[i] < first).map(finished);
    const ends = oldEnds.filter((end) => end < first);
    const front = blocks.length;
    for (const end of block_ends) {
      const begin = ends.at(-1) ?? 0;
      const shown = token_ids.slice(Math.max(0, begin - offset), end - offset);
      const masks = shown.filter((token) => token < 0).length;
      const taken = old[oldEnds.indexOf(end)]?.steps ?? 0;
      // A block that has not begun has nothing but masks.
      const more = masks < shown.length ? 1 : 0;
      const steps = blocks.length === front ? step + 1 : taken + more;
      blocks.push({ size: end - begin, masks, steps });
      ends.push(end);
    }
    this.frame = { ...this.frame, index, cells, blocks, ends, front, forwards: nfe };
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
    const more = Math.max(0, (nfe ?? 0) - this.frame.forwards);
    return blocks.map((block, index) =>
      index < this.frame.front
        ? block
        : { ...block, masks: 0, steps: block.steps + more },
    );
  }
}

function finished(block) {
  return block.masks ? { ...block, masks: 0 } : block;
}
