import { make } from "./dom.js";

// Without limits a small model may write one number that never ends.
const some = { type: "integer", minimum: -999, maximum: 999 };
const list = { type: "array", items: some, maxItems: 8 };
/** Schemas to begin with. */
export const EXAMPLES = {
  "A number": ofResult({ type: "integer" }),
  "A text": ofResult({ type: "string", maxLength: 40 }),
  "A list of numbers": ofResult(list),
};

function ofResult(schema) {
  return {
    type: "object",
    properties: { result: schema },
    required: ["result"],
    additionalProperties: false,
  };
}

/** A JSON schema that answers have to follow; empty: they are free. */
export class SchemaBox {
  constructor() {
    this.input = make("textarea", {
      rows: 6,
      spellcheck: "false",
      placeholder: "none: answers are free",
      "aria-label": "JSON schema",
    });
    const names = Object.keys(EXAMPLES).map((name) => make("option", {}, name));
    this.example = make(
      "select",
      { "aria-label": "Example schema" },
      make("option", { value: "" }, "Examples"),
      ...names,
    );
    this.example.addEventListener("input", () => {
      this.text = JSON.stringify(EXAMPLES[this.example.value], null, 2);
      this.example.value = "";
    });
    this.element = make(
      "details",
      {},
      make("summary", {}, "Structured output"),
      make("div", { class: "schema" }, this.example, this.input),
    );
  }

  get text() {
    return this.input.value.trim();
  }

  set text(text) {
    this.input.value = text;
  }

  /** What a request says of it. Throws where the text is no JSON. */
  get fields() {
    if (this.text === "") return {};
    try {
      return { structured_outputs: { json: JSON.parse(this.text) } };
    } catch (error) {
      throw new Error(`The schema is no JSON: ${error.message}`);
    }
  }
}
