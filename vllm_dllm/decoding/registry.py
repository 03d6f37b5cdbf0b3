"""Names of decoding rules. Classes are imported when first used."""

from functools import cache
from importlib import import_module

from vllm_dllm.decoding.base import DecodingRule
from vllm_dllm.quoting import quoted

RULES: dict[str, str] = {
    "low_confidence": "vllm_dllm.decoding.low_confidence:LowConfidence",
    "threshold": "vllm_dllm.decoding.threshold:Threshold",
    "sequential": "vllm_dllm.decoding.sequential:Sequential",
    "random": "vllm_dllm.decoding.random_positions:RandomPositions",
    "margin": "vllm_dllm.decoding.margin:Margin",
    "entropy": "vllm_dllm.decoding.entropy:Entropy",
    "entropy_threshold": "vllm_dllm.decoding.entropy_threshold:EntropyThreshold",
    "entropy_bounded": "vllm_dllm.decoding.entropy_bounded:EntropyBounded",
    "factor": "vllm_dllm.decoding.factor:Factor",
    "local_leap": "vllm_dllm.decoding.local_leap:LocalLeap",
    "hierarchical": "vllm_dllm.decoding.hierarchical:Hierarchical",
    "credit": "vllm_dllm.decoding.credit:Credit",
    "joint_threshold": "vllm_dllm.decoding.joint_threshold:JointThreshold",
    "joint_threshold_indel": "vllm_dllm.decoding.joint_threshold_indel:"
    "JointThresholdIndel",
    "dmax": "vllm_dllm.decoding.dmax:DMax",
    "confidence_threshold": "vllm_dllm.decoding.confidence_threshold:"
    "ConfidenceThreshold",
    "sub_block_threshold": "vllm_dllm.decoding.sub_block_threshold:SubBlockThreshold",
    "maskgit_plus": "vllm_dllm.decoding.time_grid:MaskgitPlus",
    "topk_margin": "vllm_dllm.decoding.time_grid:TopkMargin",
    "neg_entropy": "vllm_dllm.decoding.time_grid:NegEntropy",
    "origin": "vllm_dllm.decoding.time_grid:Origin",
    "random_order": "vllm_dllm.decoding.random_order:RandomOrder",
    "wedlm": "vllm_dllm.decoding.wedlm:WeDLM",
}

OWN_ATTENTION: dict[str, str] = {
    "d2f": "vllm_dllm.decoding.d2f:D2F",
    "adablock": "vllm_dllm.decoding.adablock:AdaBlock",
    "d3llm": "vllm_dllm.decoding.d3llm:D3LLM",
    "linear_spec": "vllm_dllm.decoding.linear_spec:LinearSpec",
}
"""Rules that also say what a position sees, or where blocks end, and with which models
they are possible (regimes/registry.py)."""
NAMES: tuple[str, ...] = (*RULES, *OWN_ATTENTION)
"""All that can be asked for."""

BUFFERED: dict[str, str] = {
    "threshold": "buffered_threshold",
    "joint_threshold": "buffered_joint_threshold",
}
"""Rules that are defined with several blocks in flight, and what they are then."""
OF_BUFFERS: dict[str, str] = {
    "buffered_threshold": "vllm_dllm.decoding.buffered_threshold:BufferedThreshold",
    "buffered_joint_threshold": "vllm_dllm.decoding.buffered_joint_threshold:"
    "BufferedJointThreshold",
}
"""These; nobody asks for them by name."""
OF_FAMILIES: dict[str, str] = {
    "leftmost": "vllm_dllm.decoding.leftmost:Leftmost",
    "even_low_confidence": "vllm_dllm.decoding.even_low_confidence:EvenLowConfidence",
    "d3llm_of_dream": "vllm_dllm.decoding.d3llm:D3LLMOfDream",
}
"""Nobody asks for these either: what another rule is to one family alone."""

ALIASES: dict[str, str] = {
    "low_confidence_static": "low_confidence",
    "low_confidence_dynamic": "threshold",
    "LowConfidence": "threshold",
    "JointThreshold": "joint_threshold",
    "JointThresholdInDel": "joint_threshold_indel",
    "hierarchy": "hierarchical",
}
"""Names that other engines and the authors' scripts use for the same rules."""


def canonical_name(name: str) -> str:
    """The rule's own name. Raises ValueError for a name that is neither that nor an
    alias."""
    name = ALIASES.get(name, name)
    if name not in NAMES:
        raise ValueError(
            f"unknown decoding rule {quoted(name)}; supported: "
            f"{', '.join([*NAMES, *ALIASES])}"
        )
    return name


@cache
def get_rule(name: str) -> DecodingRule:
    """The rule called `name`, a canonical name or one `OF_BUFFERS` or `OF_FAMILIES`.
    Rules hold no state of requests."""
    rules = RULES | OWN_ATTENTION | OF_BUFFERS | OF_FAMILIES
    module, _, cls = rules[name].partition(":")
    return getattr(import_module(module), cls)()
