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
    defaults: {entry of config.json: its value where it is absent}. Entries that
      not every family reads are read if they are here.
    windows: which layers see a window of tokens: "all"; "last", those from
      max_window_layers on; "most", all but each of `pattern` layers;
      "unrotated", those without rotary positions; "none". Where it is read,
      layer_types counts before.
    pattern: of "most", for families without sliding_window_pattern.
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
  pattern: int = 1
  offset_norms: bool = False
  scaled_embeddings: bool = False
  fused: bool = False
  rope_names: Mapping[str, str] = dataclasses.field(default_factory=dict)


# Windows that are switched on, for the layers from max_window_layers on.
_SWITCHED_WINDOWS = {
  "use_sliding_window": False,
  "sliding_window": 4096,
  "max_window_layers": 28,
  "layer_types": None,
}
_GEMMA_DEFAULTS = {
  "head_dim": 256,
  "num_key_value_heads": 4,
  "hidden_activation": "gelu_pytorch_tanh",
  "query_pre_attn_scalar": 256,
  "final_logit_softcapping": None,
  "sliding_window": 4096,
  "layer_types": None,
  "tie_word_embeddings": True,
}
FAMILIES: dict[str, Family] = {
  "llama": Family("LlamaForCausalLM"),
  "qwen2": Family(
    "Qwen2ForCausalLM",
    options={"qkv_bias": True},
    # Whatever attention_bias says, there are biases.
    defaults={"attention_bias": True, **_SWITCHED_WINDOWS},
    windows="last",
  ),
  "qwen3": Family(
    "Qwen3ForCausalLM",
    options={"query_key_norm": "head"},
    defaults={"head_dim": 128, **_SWITCHED_WINDOWS},
    windows="last",
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
      "sliding_window": None,
    },
    windows="all",
    fused=True,
    rope_names={"su": "longrope", "yarn": "longrope"},
  ),
  "gemma2": Family(
    "Gemma2ForCausalLM",
    options={"norms": "around"},
    defaults={
      **_GEMMA_DEFAULTS,
      "attn_logit_softcapping": 50.0,
      "final_logit_softcapping": 30.0,
      "max_position_embeddings": 8192,
    },
    windows="most",
    pattern=2,
    offset_norms=True,
    scaled_embeddings=True,
  ),
  "gemma3_text": Family(
    "Gemma3ForCausalLM",
    options={"norms": "around", "query_key_norm": "head"},
    defaults={
      **_GEMMA_DEFAULTS,
      "rope_theta": 1_000_000.0,
      "rope_local_base_freq": 10_000.0,
      "sliding_window_pattern": 6,
      "max_position_embeddings": 131_072,
    },
    windows="most",
    offset_norms=True,
    scaled_embeddings=True,
  ),
  "smollm3": Family(
    "SmolLM3ForCausalLM",
    defaults={
      "num_key_value_heads": 4,
      "rope_theta": 2_000_000.0,
      "tie_word_embeddings": True,
      "max_position_embeddings": 32768,
      "no_rope_layers": None,
      "no_rope_layer_interval": 4,
      "use_sliding_window": False,
      "sliding_window": None,
      "layer_types": None,
    },
    windows="unrotated",
  ),
  "olmo2": Family(
    "Olmo2ForCausalLM",
    options={"norms": "after", "query_key_norm": "all"},
    defaults={"rms_norm_eps": 1e-5},
  ),
}
