"""Conversion of model files' metadata to and from `TransformerConfig`.

Llama and Qwen2 differ only in the biases of queries, keys and values. Options
that this project does not support raise an error instead of being ignored.
"""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from lco_jax import networks
from lco_jax.pretrained import gguf_file, model_file

ARCHITECTURES = ("llama", "qwen2")
# Upper limit on sizes in a file, which become array shapes.
_MAX_SIZE = 2**31 - 1

# GGUF's tensor names → transformers' tensor names.
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
  "attn_output": "self_attn.o_proj",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}


class _Reader:
  """Reads entries of a mapping; errors name the file and the key."""

  def __init__(self, path: pathlib.Path, values: Mapping[str, Any]):
    self._path, self._values = path, values

  def size(self, key: str, default: int | None = None) -> int:
    value = self._get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
      raise self.error(f"{key} {value!r} is not a whole number")
    if not 1 <= value <= _MAX_SIZE:
      raise self.error(f"{key} {value} is out of range")
    return value

  def positive(self, key: str, default: float | None = None) -> float:
    value = self._get(key, default)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
      raise self.error(f"{key} {value!r} is not a positive number")
    return float(value)

  def require(self, key: str, *accepted: Any) -> None:
    """Raises unless the value is absent or one of `accepted`."""
    value = self._values.get(key, accepted[0])
    scalar = value is None or isinstance(value, str | int | float)
    if not scalar or value not in accepted:
      raise self.error(f"{key} {self._values[key]!r} is not supported")

  def error(self, problem: str) -> model_file.ModelFileError:
    return model_file.ModelFileError(self._path, problem)

  def _get(self, key, default):
    if self._values.get(key) is not None:
      return self._values[key]
    if default is None:
      raise self.error(f"{key} is missing")
    return default


def _make_config(path, **fields) -> networks.TransformerConfig:
  try:
    return networks.TransformerConfig(**fields)
  except ValueError as error:
    raise model_file.ModelFileError(path, error) from None


def from_gguf(file: gguf_file.GgufFile) -> networks.TransformerConfig:
  """Reads the configuration of a GGUF file.

  Raises:
    ModelFileError: if the architecture is not supported or a value is wrong.
  """
  metadata = file.metadata
  name = metadata.get("general.architecture")
  if not isinstance(name, str) or name not in ARCHITECTURES:
    raise model_file.ModelFileError(
      file.path, f"architecture {name!r} is not among {ARCHITECTURES}"
    )
  own = {
    key.removeprefix(f"{name}."): value
    for key, value in metadata.items()
    if key.startswith(f"{name}.")
  }
  reader = _Reader(file.path, own)
  for key in own:
    if key.startswith("rope.scaling") or key.startswith("expert"):
      reader.require(key, "none", 0)
  heads, width = (
    reader.size("attention.head_count"),
    reader.size("embedding_length"),
  )
  head_dim = reader.size("rope.dimension_count", -(-width // heads))
  reader.require("attention.key_length", head_dim)
  reader.require("attention.value_length", head_dim)
  embedding = file.tensors.get("token_embd.weight")
  if embedding is None:
    raise reader.error("tensor token_embd.weight is missing")
  return _make_config(
    file.path,
    vocab_size=reader.size("vocab_size", embedding.shape[0]),
    num_layers=reader.size("block_count"),
    width=width,
    num_heads=heads,
    num_kv_heads=reader.size("attention.head_count_kv", heads),
    mlp_width=reader.size("feed_forward_length"),
    head_dim=head_dim,
    rope_theta=reader.positive("rope.freq_base", 10_000.0),
    norm_epsilon=reader.positive("attention.layer_norm_rms_epsilon"),
    tied_embeddings="output.weight" not in file.tensors,
    qkv_bias=name == "qwen2",
  )


def gguf_context_length(file: gguf_file.GgufFile) -> int:
  """Reads the context length, in tokens, of a GGUF file's model."""
  name = file.metadata["general.architecture"]
  return _Reader(file.path, file.metadata).size(f"{name}.context_length")


def transformers_context_length(
  path: pathlib.Path, values: Mapping[str, Any]
) -> int:
  """Reads the context length, in tokens, of a config.json's model."""
  return _Reader(path, values).size("max_position_embeddings", 2048)


def convert_gguf_tensors(
  file: gguf_file.GgufFile, config: networks.TransformerConfig
) -> dict[str, model_file.Tensor]:
  """Converts a file's tensors to transformers' names and layout.

  GGUF files of Llama order the rows of queries and keys for rotary pairs
  (2i, 2i + 1); files of Qwen2 and this project pair i with i + D/2.
  """
  interleaved = file.metadata["general.architecture"] == "llama"
  heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
  found = {}
  for name, tensor in file.tensors.items():
    layer = re.fullmatch(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)", name)
    if name in _MODEL_NAMES:
      found[_MODEL_NAMES[name]] = tensor
    elif layer and layer[2] in _LAYER_NAMES:
      number, own, kind = layer.groups()
      if interleaved and own in heads:
        tensor = _deinterleave(tensor, heads[own])
      found[f"model.layers.{number}.{_LAYER_NAMES[own]}.{kind}"] = tensor
    else:
      found[name] = tensor  # `weights.to_params` rejects unknown names.
  return found


def _deinterleave(tensor: model_file.Tensor, heads: int) -> model_file.Tensor:
  """Moves rows (2i, 2i + 1) of every head to (i, i + D/2)."""

  def read():
    weight = tensor.read()
    pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)

  return model_file.Tensor(tensor.shape, read)


def from_transformers(
  path: pathlib.Path, values: Mapping[str, Any]
) -> networks.TransformerConfig:
  """Reads the configuration in a config.json.

  Args:
    path: path of the file, for errors.
    values: content of the file.

  Raises:
    ModelFileError: if the architecture is not supported or a value is wrong.
  """
  name = values.get("model_type")
  if not isinstance(name, str) or name not in ARCHITECTURES:
    raise model_file.ModelFileError(
      path, f"model_type {name!r} is not among {ARCHITECTURES}"
    )
  reader = _Reader(path, values)
  for key, accepted in (
    ("hidden_act", ("silu",)),
    ("attention_bias", (False,) if name == "llama" else (True, False)),
    ("mlp_bias", (False,)),
    ("use_sliding_window", (False,)),
    ("rope_scaling", (None,)),
    ("quantization_config", (None,)),
  ):
    reader.require(key, *accepted)
  rope = values.get("rope_parameters") or values
  if not isinstance(rope, Mapping):
    raise reader.error("rope_parameters is not a table")
  rope_reader = _Reader(path, rope)
  rope_reader.require("rope_type", "default")
  heads = reader.size("num_attention_heads")
  width = reader.size("hidden_size")
  tied = values.get("tie_word_embeddings", False)
  if not isinstance(tied, bool):
    raise reader.error(f"tie_word_embeddings {tied!r} is not true or false")
  return _make_config(
    path,
    vocab_size=reader.size("vocab_size"),
    num_layers=reader.size("num_hidden_layers"),
    width=width,
    num_heads=heads,
    num_kv_heads=reader.size("num_key_value_heads", heads),
    mlp_width=reader.size("intermediate_size"),
    head_dim=reader.size("head_dim", -(-width // heads)),
    rope_theta=rope_reader.positive("rope_theta", 10_000.0),
    norm_epsilon=reader.positive("rms_norm_eps", 1e-6),
    tied_embeddings=tied,
    qkv_bias=name == "qwen2",
  )


def to_transformers(config: networks.TransformerConfig) -> dict[str, Any]:
  """Makes the content of config.json, the inverse of `from_transformers`."""
  name = "qwen2" if config.qkv_bias else "llama"
  return {
    "architectures": [
      {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[name]
    ],
    "model_type": name,
    "vocab_size": config.vocab_size,
    "num_hidden_layers": config.num_layers,
    "hidden_size": config.width,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "intermediate_size": config.mlp_width,
    "head_dim": config.head_features,
    "rope_theta": config.rope_theta,
    "rms_norm_eps": config.norm_epsilon,
    "tie_word_embeddings": config.tied_embeddings,
    "hidden_act": "silu",
    "torch_dtype": "float32",
  }
