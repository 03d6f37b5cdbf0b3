import { make } from "./dom.js";
import { SchemaBox } from "./schema.js";

/** Rules and the fields they use: the names and `parameters` of vllm_dllm/decoding. */
export const RULES = {
  threshold: ["threshold", "steps"],
  low_confidence: ["steps"],
  sequential: ["steps"],
  random: ["steps"],
  margin: ["steps"],
  entropy: ["steps"],
  factor: ["factor"],
  entropy_bounded: ["entropy_bound"],
  entropy_threshold: ["entropy_threshold"],
  local_leap: [
    "local_leap_anchor_threshold",
    "local_leap_neighbor_threshold",
    "local_leap_radius",
  ],
  hierarchical: ["threshold", "low_threshold"],
  credit: ["threshold", "credit_alpha", "credit_beta", "credit_gamma"],
  joint_threshold: ["threshold", "edit_threshold", "max_post_steps"],
  joint_threshold_indel: ["threshold", "edit_threshold", "max_post_steps"],
  dmax: ["threshold"],
  confidence_threshold: ["threshold"],
  sub_block_threshold: ["threshold", "sub_block_length"],
  wedlm: ["entropy_threshold", "pos_penalty_factor"],
  maskgit_plus: ["steps", "eps", "alg_temp"],
  topk_margin: ["steps", "eps", "alg_temp"],
  neg_entropy: ["steps", "eps", "alg_temp"],
  origin: ["steps", "eps"],
  random_order: ["steps"],
  d2f: ["threshold", "add_block_threshold", "semi_complete_threshold"],
  adablock: ["threshold", "delimiter_threshold"],
  d3llm: ["entropy_threshold", "add_block_threshold", "block_length"],
  linear_spec: ["threshold"],
};
/** The fields of several blocks in flight that these rules have. */
export const BUFFERED = {
  threshold: [
    "buffer_size",
    "add_block_threshold",
    "semi_complete_threshold",
    "token_stability_threshold",
  ],
  joint_threshold: [
    "buffer_size",
    "add_block_threshold",
    "token_stability_threshold",
  ],
};
/** What every model's own rule uses, whichever it is. */
const OWN_RULE = ["steps"];

const share = { min: 0, max: 1, step: 0.01, slider: true };
const amount = { min: 0, step: 0.05 };
const count = { min: 1, step: 1 };

/** Controls by the name of their field. Empty means: the server's default. */
const GENERAL = {
  max_tokens: { label: "Max tokens", ...count },
  temperature: { label: "Temperature", min: 0, step: 0.1 },
  seed: { label: "Seed", min: 0, step: 1 },
};
export const OF_RULES = {
  dllm_threshold: { label: "Threshold", ...share },
  dllm_steps: { label: "Steps", ...count },
  dllm_factor: { label: "Factor", ...amount },
  dllm_entropy_bound: { label: "Entropy bound", ...amount },
  dllm_entropy_threshold: { label: "Entropy threshold", ...amount },
  dllm_low_threshold: { label: "Low threshold", ...share },
  dllm_local_leap_anchor_threshold: { label: "Anchor threshold", ...share },
  dllm_local_leap_neighbor_threshold: { label: "Neighbor threshold", ...share },
  dllm_local_leap_radius: { label: "Radius", min: 0, step: 1 },
  dllm_credit_alpha: { label: "Credit alpha", ...amount },
  dllm_credit_beta: { label: "Credit beta", ...share },
  dllm_credit_gamma: { label: "Credit gamma", ...amount },
  dllm_edit_threshold: { label: "Edit threshold", ...share },
  dllm_max_post_steps: { label: "Max post steps", min: 0, step: 1 },
  dllm_sub_block_length: { label: "Sub-block length", ...count },
  dllm_pos_penalty_factor: { label: "Penalty of a place", min: 0, step: 0.01 },
  dllm_delimiter_threshold: { label: "Delimiter threshold", ...share },
  dllm_eps: { label: "Eps", min: 0, max: 1, step: 0.001 },
  dllm_alg_temp: { label: "Alg temp", ...amount },
};
export const OF_BUFFERS = {
  dllm_buffer_size: { label: "Buffer size", min: 1, max: 16, step: 1 },
  dllm_add_block_threshold: { label: "Add-block threshold", ...share, min: 0.01 },
  dllm_semi_complete_threshold: {
    label: "Semi-complete threshold",
    ...share,
    min: 0.01,
  },
  dllm_token_stability_threshold: { label: "Token stability threshold", ...share },
};
export const FULL_ATTENTION = {
  dllm_cache: { label: "Cache", options: ["none", "prefix", "dual"] },
  dllm_block_length: { label: "Block length", ...count },
  dllm_cfg_scale: { label: "Guidance scale", min: 0, step: 0.5 },
};

const UNSET = "default";
let lastId = 0;

/** The controls of one column, and the fields that the user set with them. */
export class Settings {
  constructor() {
    this.rows = new Map();
    this.schema = new SchemaBox();
    this.summary = make("summary");
    const rule = { label: "Decoding rule", options: Object.keys(RULES) };
    this.element = make(
      "details",
      { class: "settings" },
      this.summary,
      make(
        "div",
        { class: "fields" },
        ...this.add({ dllm_algorithm: rule, ...OF_RULES, ...OF_BUFFERS, ...GENERAL }),
        make(
          "div",
          { class: "rest" },
          make(
            "details",
            {},
            make("summary", {}, "Full-attention models"),
            make("div", { class: "fields" }, ...this.add(FULL_ATTENTION)),
          ),
          make(
            "button",
            { type: "button", class: "quiet", onclick: () => this.copy(null) },
            "Reset",
          ),
        ),
        make("div", { class: "rest" }, this.schema.element),
      ),
    );
    this.element.addEventListener("input", () => this.refresh());
    this.refresh();
  }

  add(fields) {
    return Object.entries(fields).map(([name, field]) => {
      const row = rowOf(field);
      this.rows.set(name, row);
      return row.element;
    });
  }

  /** All that a request says. Throws where the schema is no JSON. */
  get wishes() {
    return { ...this.fields, ...this.schema.fields };
  }

  get isUnset() {
    return !Object.keys(this.fields).length && this.schema.text === "";
  }

  /** Fields of decoding: those that the user set and that are on view. */
  get fields() {
    const fields = {};
    for (const [name, { element, input }] of this.rows) {
      if (input.value === "" || element.hidden) continue;
      fields[name] = input.type === "number" ? Number(input.value) : input.value;
    }
    return fields;
  }

  /** Takes over what another column has set; forgets all without one. */
  copy(other) {
    for (const [name, { input }] of this.rows) {
      input.value = other?.fields[name] ?? "";
    }
    this.schema.text = other?.schema.text ?? "";
    this.refresh();
  }

  /** Shows the fields that the rule uses, and what is set in the summary. */
  refresh() {
    const rule = this.rows.get("dllm_algorithm").input.value;
    const used = RULES[rule] ?? OWN_RULE;
    for (const name of Object.keys(OF_RULES)) {
      const isUsed = used.includes(name.slice("dllm_".length));
      this.rows.get(name).element.hidden = !isUsed;
    }
    const several = Number(this.rows.get("dllm_buffer_size").input.value) > 1;
    for (const name of Object.keys(OF_BUFFERS)) {
      const field = name.slice("dllm_".length);
      const isOn = several || field === "buffer_size";
      const isUsed = isOn && (BUFFERED[rule]?.includes(field) ?? false);
      this.rows.get(name).element.hidden = !(isUsed || used.includes(field));
    }
    for (const { input, slider } of this.rows.values()) {
      if (!slider) continue;
      slider.classList.toggle("unset", input.value === "");
      slider.value = input.value === "" ? 0.9 : input.value;
    }
    const { dllm_algorithm, ...rest } = this.fields;
    const set = Object.entries(rest).map(([name, value]) => {
      const { label } = this.rows.get(name);
      return `${label.toLowerCase()} ${value}`;
    });
    if (this.schema.text !== "") set.push("a schema");
    const heading = make("b", {}, dllm_algorithm ?? "Server's rule");
    this.summary.replaceChildren(heading, set.length ? " " + set.join(", ") : "");
  }
}

function rowOf({ label, options, slider: hasSlider, ...limits }) {
  const id = `setting-${++lastId}`;
  const caption = make("label", { for: id }, label);
  if (options) {
    const choices = options.map((name) => make("option", {}, name));
    const first = make("option", { value: "" }, UNSET);
    const input = make("select", { id }, first, ...choices);
    return { label, input, element: make("div", { class: "field" }, caption, input) };
  }
  const input = make("input", { id, type: "number", placeholder: UNSET, ...limits });
  const element = make("div", { class: "field" }, caption, input);
  if (!hasSlider) return { label, input, element };
  const slider = make("input", {
    type: "range",
    "aria-label": `${label}, slider`,
    ...limits,
    oninput: () => (input.value = slider.value),
  });
  element.classList.add("slid");
  element.append(slider);
  return { label, input, slider, element };
}
