"""Reading of config.json as `TransformerConfig`.

An entry that changes what a model computes, and that this project does not do,
raises an error that names it; one that is not known is named in a warning.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from lco_jax import networks
from lco_jax.pretrained import entries, families, model_file, rotary

_ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu_pytorch_tanh": "gelu",
  "gelu_new": "gelu",
}
_FULL, _WINDOWED = "full_attention", "sliding_attention"

# Layers that are listed one by one, and features of a head.
_MAX_LAYERS, _MAX_HEAD_DIM = 10_000, 8192

# Entries of every family that are read.
_READ = {
  "attention_bias",
  "head_dim",
  "hidden_act",
  "hidden_activation",
  "hidden_size",
  "intermediate_size",
  "max_position_embeddings",
  "mlp_bias",
  "model_type",
  "num_attention_heads",
  "num_hidden_layers",
  "num_key_value_heads",
  "original_max_position_embeddings",
  "rms_norm_eps",
  "rope_parameters",
  "rope_scaling",
  "rope_theta",
  "tie_word_embeddings",
  "vocab_size",
}
# Entries that do not change what is computed here.
_HARMLESS = {
  "_attn_implementation_autoset",
  "_name_or_path",
  "_sliding_window_pattern",
  "architectures",
  "attention_dropout",
  "auto_map",
  "bos_token_id",
  "cache_implementation",
  "dtype",
  "embd_pdrop",
  "eos_token_id",
  "id2label",
  "initializer_range",
  "is_decoder",
  "label2id",
  "output_attentions",
  "output_hidden_states",
  "pad_token_id",
  "pretraining_tp",
  "resid_pdrop",
  "return_dict",
  "torch_dtype",
  "torchscript",
  "transformers.js_config",
  "transformers_version",
  "unsloth_fixed",
  "unsloth_version",
  "use_cache",
}
# Entries that change what is computed where a family does not read them (see
# `Family.defaults`), and the values with which they do not.
_NEUTRAL: dict[str, tuple] = {
  "attention_bias": (False,),
  "attention_multiplier": (),
  "attn_logit_softcapping": (),
  "clip_qkv": (),
  "embedding_multiplier": (1, 1.0),
  "final_logit_softcapping": (),
  "is_causal": (True,),
  "is_encoder_decoder": (False,),
  "layer_types": (),
  "logit_scale": (1, 1.0),
  "logits_scaling": (1, 1.0),
  "max_window_layers": (),
  "mlp_bias": (False,),
  "no_rope_layer_interval": (),
  "no_rope_layers": (),
  "num_experts": (0,),
  "num_local_experts": (0,),
  "partial_rotary_factor": (1, 1.0),
  "query_pre_attn_scalar": (),
  "quantization_config": (),
  "residual_multiplier": (1, 1.0),
  "rope_interleaved": (False,),
  "rope_local_base_freq": (),
  "scale_attn_by_inverse_layer_idx": (False,),
  "sliding_window": (),
  "sliding_window_pattern": (),
  "use_bidirectional_attention": (False,),
  "use_qk_norm": (False,),
  "use_sliding_window": (False,),
}


class Configuration(NamedTuple):
  """Content of a config.json.

  Attributes:
    transformer: the network.
    family: row of FAMILIES.
    context_length: tokens of the longest text.
  """

  transformer: networks.TransformerConfig
  family: families.Family
  context_length: int


def read(path: pathlib.Path, values: Mapping[str, Any]) -> Configuration:
  """Reads the configuration in a config.json.

  Args:
    path: of the file, for errors.
    values: content of the file.

  Raises:
    ModelFileError: if the architecture is not supported or a value is wrong.
  """
  name = values.get("model_type")
  if not isinstance(name, str) or name not in families.FAMILIES:
    known = ", ".join(families.FAMILIES)
    raise model_file.ModelFileError(
      path, f"model_type {name!r} is not among {known}"
    )
  family = families.FAMILIES[name]
  own = entries.Entries(path, {**family.defaults, **values})
  _check(entries.Entries(path, values), family)
  heads, width = own.size("num_attention_heads"), own.size("hidden_size")
  head_dim = own.size("head_dim", -(-width // heads))
  if head_dim % 2 or head_dim > _MAX_HEAD_DIM:
    raise own.error(f"head_dim {head_dim} is odd or out of range")
  full, windowed = _split_rotary(own, family)
  turns = rotary.read(
    own,
    full,
    own.positive("rope_theta", 10_000.0),
    head_dim,
    own.size("max_position_embeddings", 2048),
    family.rope_names,
  )
  layers = own.size("num_hidden_layers")
  window, window_layers = _read_windows(own, family, layers)
  options = dict(family.options) | _read_caps(own, family)
  if family.scaled_embeddings:
    options["embedding_scale"] = width**0.5
  if window is not None:
    options |= {
      "window": window,
      "window_layers": window_layers,
      "window_rope_theta": _read_window_theta(own, windowed),
    }
  if "no_rope_layers" in family.defaults:
    options["unrotated_layers"] = _read_unrotated(own, layers)
  try:
    transformer = networks.TransformerConfig(
      vocab_size=own.size("vocab_size"),
      num_layers=layers,
      width=width,
      num_heads=heads,
      num_kv_heads=own.size("num_key_value_heads", heads),
      mlp_width=own.size("intermediate_size"),
      head_dim=head_dim,
      rope_theta=turns.theta,
      rope_divisors=turns.divisors,
      rope_amplitude=turns.amplitude,
      norm_epsilon=own.positive("rms_norm_eps", 1e-6),
      tied_embeddings=own.flag("tie_word_embeddings", False),
      activation=_read_activation(own, family),
      **options,
    )
  except ValueError as error:
    raise model_file.ModelFileError(path, error) from None
  return Configuration(transformer, family, turns.context_length)


def _check(given: entries.Entries, family: families.Family) -> None:
  """Refuses what is not done here, and warns of what is not known."""
  for key, neutral in _NEUTRAL.items():
    if key not in family.defaults:
      given.require(key, *neutral)
  given.warn_of_unknown(_READ | _HARMLESS | _NEUTRAL.keys())


def _read_activation(own: entries.Entries, family: families.Family) -> str:
  """Activation of the gated linear unit, by the network's name."""
  named = "hidden_activation" in family.defaults
  key = "hidden_activation" if named else "hidden_act"
  activation = own.text(key, "silu")
  if activation not in _ACTIVATIONS:
    raise own.error(
      f"{key} {activation!r} is not among {', '.join(_ACTIVATIONS)}"
    )
  return _ACTIVATIONS[activation]


def _read_caps(own: entries.Entries, family: families.Family) -> dict[str, Any]:
  """Options that cap and scale scores and logits."""
  options = {}
  for key, name in (
    ("attn_logit_softcapping", "attention_cap"),
    ("final_logit_softcapping", "logit_cap"),
  ):
    if key in family.defaults:
      options[name] = own.maybe_positive(key)
  if "query_pre_attn_scalar" in family.defaults:
    options["attention_scale"] = own.positive("query_pre_attn_scalar") ** -0.5
  return options


def _split_rotary(own: entries.Entries, family: families.Family):
  """(rotary parameters of all layers, those of windowed ones or None).

  As in transformers, rope_scaling counts before rope_parameters.
  """
  scaling, parameters = own.table("rope_scaling"), own.table("rope_parameters")
  by_layers = _FULL in parameters or _WINDOWED in parameters
  if by_layers and scaling:
    raise own.error("rope_scaling and rope_parameters by layers are both there")
  if by_layers:
    for name in parameters:
      if name not in (_FULL, _WINDOWED):
        raise own.error(f"rope_parameters of {name} are not supported")
    nested = entries.Entries(own.path, parameters)
    return nested.table(_FULL), nested.table(_WINDOWED)
  if parameters and "rope_local_base_freq" in family.defaults:
    raise own.error(f"rope_parameters are not those of {_FULL} and {_WINDOWED}")
  return scaling or parameters, None


def _read_window_theta(own: entries.Entries, windowed) -> float | None:
  """Base of the wavelengths of windowed layers; None for that of the others."""
  theta = own.maybe_positive("rope_local_base_freq")
  if windowed is None:
    return theta
  nested = entries.Entries(own.path, windowed)
  for key in ("rope_type", "type"):
    nested.require(key, "default")
  return nested.positive("rope_theta", theta or 10_000.0)


def _read_windows(
  own: entries.Entries, family: families.Family, layers: int
) -> tuple[int | None, tuple[int, ...] | None]:
  """(window, numbers of the layers that have it; None for all of them)."""
  if family.windows == "none" or own.get("sliding_window") is None:
    return None, None
  listed = own.get("layer_types")
  switched = "use_sliding_window" in family.defaults
  if switched and not own.flag("use_sliding_window", False):
    if isinstance(listed, list) and _WINDOWED in listed:
      raise own.error("layer_types lists windows, use_sliding_window is false")
    return None, None
  window = own.size("sliding_window")
  if family.windows == "all":
    return window, None
  _check_count(own, layers)
  if listed is None:
    return window, _place_windows(own, family, layers)
  if not (
    isinstance(listed, list)
    and len(listed) >= layers
    and all(kind in (_FULL, _WINDOWED) for kind in listed)
  ):
    raise own.error(
      f"layer_types is not a list of {layers} times {_FULL} or {_WINDOWED}"
    )
  return window, tuple(i for i in range(layers) if listed[i] == _WINDOWED)


def _check_count(own: entries.Entries, layers: int) -> None:
  if layers > _MAX_LAYERS:
    raise own.error(f"num_hidden_layers {layers} is out of range")


def _place_windows(own, family, layers) -> tuple[int, ...]:
  """Numbers of the windowed layers where layer_types does not list them."""
  if family.windows == "unrotated":
    return _read_unrotated(own, layers)
  if family.windows == "most":
    pattern = own.size("sliding_window_pattern", family.pattern)
    return tuple(i for i in range(layers) if (i + 1) % pattern)
  first = own.get("max_window_layers")
  if isinstance(first, bool) or not isinstance(first, int) or first < 0:
    raise own.error(f"max_window_layers {first!r} is not a whole number")
  return tuple(range(min(first, layers), layers))


def _read_unrotated(own: entries.Entries, layers: int) -> tuple[int, ...]:
  """Numbers of the layers without rotary positions."""
  _check_count(own, layers)
  listed = own.get("no_rope_layers")
  if listed is None:
    interval = own.size("no_rope_layer_interval")
    return tuple(i for i in range(layers) if (i + 1) % interval == 0)
  if not (
    isinstance(listed, list)
    and len(listed) >= layers
    and all(rotates in (0, 1) for rotates in listed)
  ):
    raise own.error(f"no_rope_layers is not a list of {layers} times 0 or 1")
  return tuple(i for i in range(layers) if not listed[i])
