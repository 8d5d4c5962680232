"""GGUF's metadata and tensors as config.json and transformers' tensors.

Source: llama.cpp, gguf-py/gguf/constants.py and convert_hf_to_gguf.py.
"""

import re
from typing import Any

import numpy as np

from lco_jax.pretrained import entries, families, gguf_file, model_file

# GGUF's architectures → transformers' model types.
_ARCHITECTURES = {
  "llama": "llama",
  "qwen2": "qwen2",
  "qwen3": "qwen3",
  "phi3": "phi3",
  "gemma2": "gemma2",
  "gemma3": "gemma3_text",
  "smollm3": "smollm3",
  "olmo2": "olmo2",
}
# Families whose files pair rotary features (2i, 2i + 1).
_INTERLEAVED = ("llama", "smollm3")
# Metadata, without the architecture's prefix → entries of config.json.
_SIZES = {
  "block_count": "num_hidden_layers",
  "embedding_length": "hidden_size",
  "feed_forward_length": "intermediate_size",
  "attention.head_count": "num_attention_heads",
  "context_length": "max_position_embeddings",
}
_READ = {
  *_SIZES,
  "vocab_size",
  "attention.head_count_kv",
  "attention.key_length",
  "attention.value_length",
  "attention.layer_norm_rms_epsilon",
  "attention.sliding_window",
  "attention.sliding_window_pattern",
  "attn_logit_softcapping",
  "final_logit_softcapping",
  "rope.dimension_count",
  "rope.freq_base",
  "rope.freq_base_swa",
  "rope.scaling.attn_factor",
  "rope.scaling.factor",
  "rope.scaling.original_context_length",
  "rope.scaling.type",
  "rope.scaling.yarn_beta_fast",
  "rope.scaling.yarn_beta_slow",
  "rope.scale_linear",
  "tensor_data_layout",
}
# Metadata that change what is computed, and the values with which they do not.
_NEUTRAL = {
  "attention.causal": (True,),
  "attention.scale": (),
  "expert_count": (0,),
  "expert_used_count": (0,),
  "rope.scaling.finetuned": (True, False),
  "use_parallel_residual": (True, False),
}

_MODEL_NAMES = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_qkv": "self_attn.qkv_proj",
  "attn_q_norm": "self_attn.q_norm",
  "attn_k_norm": "self_attn.k_norm",
  "attn_output": "self_attn.o_proj",
  "post_attention_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
  "post_ffw_norm": "post_feedforward_layernorm",
}
# Divisors of the rotary frequencies: of Llama 3, and of short and long texts.
_DIVISORS = ("rope_freqs.weight", "rope_factors_short.weight")
_LONG_DIVISORS = "rope_factors_long.weight"


def to_config_json(file: gguf_file.GgufFile) -> dict[str, Any]:
  """Makes the config.json that says what a file's metadata say.

  Raises:
    ModelFileError: if the architecture is not supported or a value is wrong.
  """
  name = file.metadata.get("general.architecture")
  if not isinstance(name, str) or name not in _ARCHITECTURES:
    raise model_file.ModelFileError(
      file.path,
      f"architecture {name!r} is not among {', '.join(_ARCHITECTURES)}",
    )
  own = entries.Entries(
    file.path,
    {
      key.removeprefix(f"{name}."): value
      for key, value in file.metadata.items()
      if key.startswith(f"{name}.")
    },
  )
  for key, neutral in _NEUTRAL.items():
    own.require(key, *neutral)
  own.refuse_unknown(_READ | _NEUTRAL.keys())
  kind = _ARCHITECTURES[name]
  values = {entry: own.size(key) for key, entry in _SIZES.items()}
  heads, width = values["num_attention_heads"], values["hidden_size"]
  head_dim = own.size(
    "attention.key_length", own.size("rope.dimension_count", -(-width // heads))
  )
  for key in ("rope.dimension_count", "attention.value_length"):
    own.require(key, head_dim)
  embedding = file.tensors.get("token_embd.weight")
  if embedding is None:
    raise own.error("tensor token_embd.weight is missing")
  values |= {
    "model_type": kind,
    "vocab_size": own.size("vocab_size", embedding.shape[0]),
    "num_key_value_heads": own.size("attention.head_count_kv", heads),
    "head_dim": head_dim,
    "rms_norm_eps": own.positive("attention.layer_norm_rms_epsilon"),
    "tie_word_embeddings": "output.weight" not in file.tensors,
    "rope_theta": own.positive("rope.freq_base", 10_000.0),
  }
  family = families.FAMILIES[kind]
  values |= _read_windows(own, family)
  for key in ("attn_logit_softcapping", "final_logit_softcapping"):
    if key not in family.defaults:
      own.require(key)
    elif own.get(key) is not None:  # Old files leave the family's defaults out.
      values[key] = own.positive(key)
  if "query_pre_attn_scalar" in family.defaults:
    values["query_pre_attn_scalar"] = _find_query_scale(kind, values)
  else:
    values["hidden_act"] = "silu"
  trained = "rope.scaling.original_context_length"
  if own.get(trained) is not None:
    values["original_max_position_embeddings"] = own.size(trained)
  rope = _read_rotary(own, file, values)
  if rope is not None:
    values["rope_scaling"] = rope
  return values


def _find_query_scale(kind: str, values: dict[str, Any]) -> int:
  """Divisor of squared scores, which the files of Gemma do not tell.

  It is the head's features, but width / heads in the largest models.
  """
  largest = {"gemma2": 46, "gemma3_text": 62}[kind]
  if values["num_hidden_layers"] == largest:
    return values["hidden_size"] // values["num_attention_heads"]
  return values["head_dim"]


def _read_windows(own: entries.Entries, family: families.Family):
  """Entries of config.json for windowed layers."""
  if "rope_local_base_freq" not in family.defaults:
    own.require("rope.freq_base_swa")
  window = own.get("attention.sliding_window")
  if window is None and family.windows == "most":
    return {}  # Old files leave the family's default out.
  if window is None or type(window) is int and window == 0:  # Switched off.
    return {"sliding_window": None} if family.windows != "none" else {}
  window = own.size("attention.sliding_window")
  values: dict[str, Any] = {"sliding_window": window}
  if family.windows == "last":
    # Such files do not tell which layers have it, nor whether it is on.
    raise own.error(f"attention.sliding_window {window} is not supported")
  pattern = own.get("attention.sliding_window_pattern")
  if pattern is not None:
    if isinstance(pattern, np.ndarray):
      kinds = {True: "sliding_attention", False: "full_attention"}
      values["layer_types"] = [kinds[bool(x)] for x in pattern.tolist()]
    else:
      values["sliding_window_pattern"] = own.size(
        "attention.sliding_window_pattern"
      )
  local = own.maybe_positive("rope.freq_base_swa")
  return values | ({} if local is None else {"rope_local_base_freq": local})


def _read_rotary(own, file, values) -> dict[str, Any] | None:
  """rope_scaling of config.json; None for none."""
  found = [name for name in _DIVISORS if name in file.tensors]
  kind = own.text("rope.scaling.type", "none")
  if own.get("rope.scale_linear") is not None:  # Older files' spelling.
    own.require("rope.scaling.type")
    kind = "linear"
  trained = own.size(
    "rope.scaling.original_context_length", values["max_position_embeddings"]
  )
  if found:
    if kind not in ("none", "longrope"):
      raise own.error(f"rope.scaling.type is {kind!r}, beside {found[0]}")
    own.require("rope.scaling.factor", 1.0)
    short = _read_divisors(own, file, found[0], values)
    long = short
    if _LONG_DIVISORS in file.tensors:
      long = _read_divisors(own, file, _LONG_DIVISORS, values)
    amplitude = own.positive("rope.scaling.attn_factor", 1.0)
    return {
      "rope_type": "longrope",
      "short_factor": short,
      "long_factor": long,
      "attention_factor": amplitude,
      "original_max_position_embeddings": trained,
    }
  if kind == "none":
    for key in ("factor", "attn_factor"):
      own.require(f"rope.scaling.{key}", 1.0)
    return None
  factor = own.positive(
    "rope.scaling.factor", own.maybe_positive("rope.scale_linear")
  )
  if kind == "linear":
    own.require("rope.scaling.attn_factor", 1.0)
    return {"rope_type": "linear", "factor": factor}
  if kind != "yarn":
    raise own.error(f"rope.scaling.type {kind!r} is not supported")
  own.require("rope.scaling.attn_factor", 1.0)
  return {
    "rope_type": "yarn",
    "factor": factor,
    "original_max_position_embeddings": trained,
    "beta_fast": own.positive("rope.scaling.yarn_beta_fast", 32.0),
    "beta_slow": own.positive("rope.scaling.yarn_beta_slow", 1.0),
  }


def _read_divisors(own, file, name, values) -> list[float]:
  tensor = file.tensors[name]
  if tensor.shape != (values["head_dim"] // 2,):
    raise own.error(
      f"tensor {name} is {list(tensor.shape)}, not [{values['head_dim'] // 2}]"
    )
  divisors = tensor.read()
  if not (np.isfinite(divisors) & (divisors > 0)).all():
    raise own.error(f"tensor {name} is not positive")
  return divisors.astype(float).tolist()


def convert_tensors(
  file: gguf_file.GgufFile, values: dict[str, Any]
) -> dict[str, model_file.Tensor]:
  """Converts a file's tensors to transformers' names and layout.

  GGUF files of some families order the rows of queries and keys for rotary
  pairs (2i, 2i + 1); those of others, and this project, pair i with i + D/2.
  Files of Gemma store the scales of RMSNorm, transformers the scales less 1.

  Args:
    file: the file.
    values: config.json of `to_config_json`.
  """
  family = families.FAMILIES[values["model_type"]]
  layer_names = dict(_LAYER_NAMES)
  around = family.options.get("norms") == "around"
  layer_names["ffn_norm"] = (
    "pre_feedforward_layernorm" if around else "post_attention_layernorm"
  )
  if family.fused:
    layer_names["ffn_up"] = "mlp.gate_up_proj"
  heads = {}
  if values["model_type"] in _INTERLEAVED:
    heads = {
      "attn_q": values["num_attention_heads"],
      "attn_k": values["num_key_value_heads"],
    }
  found = {}
  for name, tensor in file.tensors.items():
    layer = re.fullmatch(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)", name)
    if family.offset_norms and name.endswith("norm.weight"):
      tensor = _subtract_one(tensor)
    if name in (*_DIVISORS, _LONG_DIVISORS):
      continue
    if name in _MODEL_NAMES:
      found[_MODEL_NAMES[name]] = tensor
    elif layer and layer[2] in layer_names:
      number, own, kind = layer.groups()
      if own in heads:
        tensor = _deinterleave(tensor, heads[own])
      found[f"model.layers.{number}.{layer_names[own]}.{kind}"] = tensor
    else:
      found[name] = tensor  # `weights.to_params` rejects unknown names.
  return found


def _subtract_one(tensor: model_file.Tensor) -> model_file.Tensor:
  return model_file.Tensor(
    tensor.shape, lambda index: tensor.read_part(index) - np.float32(1)
  )


def _deinterleave(tensor: model_file.Tensor, heads: int) -> model_file.Tensor:
  """Moves rows (2i, 2i + 1) of every head to (i, i + D/2)."""
  size = tensor.shape[0] // heads

  def read_part(index):
    rows, rest = range(tensor.shape[0])[index[0]], index[1:]
    # All rows of the heads that some of them belong to.
    first, behind = rows.start // size, -(-rows.stop // size)
    weight = tensor.read_part((slice(first * size, behind * size), *rest))
    pairs = weight.reshape(behind - first, size // 2, 2, *weight.shape[1:])
    moved = pairs.swapaxes(1, 2).reshape(weight.shape)
    return moved[rows.start - first * size : rows.stop - first * size]

  return model_file.Tensor(tensor.shape, read_part)
