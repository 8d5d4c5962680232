"""Families of models: what a config.json of each leaves unsaid.

A family is a model_type of transformers. Its row says which options of the
transformer its models have, what absent entries mean, and how its files store
weights. All of them are the same `networks.Transformer`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Family:
  """A model_type of transformers.

  Attributes:
    class_name: transformers' class of it.
    options: fixed options of `TransformerConfig`.
    defaults: {entry of config.json: its value where it is absent}.
    windows: which layers see a window of tokens: "all"; "switched", those from
      max_window_layers on, if use_sliding_window; "listed", those that
      layer_types lists; "none".
    pattern: of "listed": every so many layers, one sees all tokens.
    rotates_some: whether no_rope_layers may list layers without rotation.
    reads_pattern: whether sliding_window_pattern may change it.
    has_caps: whether logits may be capped, and query_pre_attn_scalar scales
      attention scores.
    caps_attention: whether attention scores may be capped.
    offset_norms: whether files store the scales of RMSNorm less 1.
    scaled_embeddings: whether embeddings are multiplied by √width.
    fused: whether files store queries, keys and values as one matrix, and the
      two factors of the gated linear unit as another.
    rope_names: {other name of a rotary scaling: its name}.
  """

  class_name: str
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  windows: str = "none"
  pattern: int = 0
  rotates_some: bool = False
  reads_pattern: bool = False
  has_caps: bool = False
  caps_attention: bool = False
  offset_norms: bool = False
  scaled_embeddings: bool = False
  fused: bool = False
  rope_names: Mapping[str, str] = dataclasses.field(default_factory=dict)


_GEMMA = {
  "offset_norms": True,
  "scaled_embeddings": True,
  "has_caps": True,
  "windows": "listed",
}
_GEMMA_DEFAULTS = {
  "head_dim": 256,
  "hidden_activation": "gelu_pytorch_tanh",
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
  "tie_word_embeddings": True,
}
FAMILIES: dict[str, Family] = {
  "llama": Family("LlamaForCausalLM"),
  "qwen2": Family(
    "Qwen2ForCausalLM",
    options={"qkv_bias": True},
    defaults={"sliding_window": 4096, "max_window_layers": 28},
    windows="switched",
  ),
  "qwen3": Family(
    "Qwen3ForCausalLM",
    options={"query_key_norm": "head"},
    defaults={
      "head_dim": 128,
      "sliding_window": 4096,
      "max_window_layers": 28,
    },
    windows="switched",
  ),
  "mistral": Family(
    "MistralForCausalLM",
    defaults={"sliding_window": 4096, "num_key_value_heads": 8},
    windows="all",
  ),
  "phi3": Family(
    "Phi3ForCausalLM",
    defaults={
      "rms_norm_eps": 1e-5,
      "max_position_embeddings": 4096,
      "original_max_position_embeddings": 4096,
    },
    windows="all",
    fused=True,
    rope_names={"su": "longrope", "yarn": "longrope"},
  ),
  "gemma2": Family(
    "Gemma2ForCausalLM",
    options={"norms": "around"},
    defaults=_GEMMA_DEFAULTS
    | {
      "num_key_value_heads": 4,
      "final_logit_softcapping": 30.0,
      "attn_logit_softcapping": 50.0,
      "max_position_embeddings": 8192,
    },
    pattern=2,
    caps_attention=True,
    **_GEMMA,
  ),
  "gemma3_text": Family(
    "Gemma3ForCausalLM",
    options={"norms": "around", "query_key_norm": "head"},
    defaults=_GEMMA_DEFAULTS
    | {
      "num_key_value_heads": 4,
      "rope_theta": 1_000_000.0,
      "rope_local_base_freq": 10_000.0,
      "max_position_embeddings": 131_072,
    },
    pattern=6,
    reads_pattern=True,
    **_GEMMA,
  ),
  "smollm3": Family(
    "SmolLM3ForCausalLM",
    defaults={
      "num_key_value_heads": 4,
      "rope_theta": 2_000_000.0,
      "tie_word_embeddings": True,
      "max_position_embeddings": 32768,
      "no_rope_layer_interval": 4,
    },
    windows="listed",
    rotates_some=True,
  ),
  "olmo2": Family(
    "Olmo2ForCausalLM",
    options={"norms": "after", "query_key_norm": "all"},
    defaults={"rms_norm_eps": 1e-5},
  ),
}
