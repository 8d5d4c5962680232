"""Conversion between transformers' named weights and parameters.

    transformers                          parameters
    model.embed_tokens.weight   [V, W]    embed/embedding           [V, W]
    model.layers.I.….weight     [out, in] blocks/…/kernel   [layers, in, out]
    model.norm.weight           [W]       final_norm/scale          [W]
    lm_head.weight              [V, W]    output/kernel             [W, V]

The last is absent if the output layer shares the embedding's weights. Families
whose files fuse matrices or store RMSNorm's scales less 1 are converted here.
"""

import functools
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from lco_jax import networks, types
from lco_jax.pretrained import families, model_file

# Names of the norms of a layer, by where they are.
_NORMS = {
  "before": {
    ("attention_norm",): "input_layernorm",
    ("mlp_norm",): "post_attention_layernorm",
  },
  "after": {
    ("after_attention_norm",): "post_attention_layernorm",
    ("after_mlp_norm",): "post_feedforward_layernorm",
  },
  "around": {
    ("attention_norm",): "input_layernorm",
    ("after_attention_norm",): "post_attention_layernorm",
    ("mlp_norm",): "pre_feedforward_layernorm",
    ("after_mlp_norm",): "post_feedforward_layernorm",
  },
}
# Fused matrices, and the matrices that they consist of.
_FUSED = {
  "self_attn.qkv_proj": (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
  ),
  "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


class Place(NamedTuple):
  """Location of a weight among the parameters.

  Attributes:
    keys: path to the parameter.
    layer: index along its layer axis; None if it has no layer axis.
    transposed: whether the parameter is [in, out] and the weight [out, in].
    shape: shape of the weight.
  """

  keys: tuple[str, ...]
  layer: int | None
  transposed: bool
  shape: tuple[int, ...]


def list_places(config: networks.TransformerConfig) -> dict[str, Place]:
  """Lists all weights of a model, {name: Place}."""
  width, features = config.width, config.head_features
  queries = config.num_heads * features
  keys = config.num_kv_heads * features
  vocabulary = (config.vocab_size, width)
  found = {
    "model.embed_tokens.weight": Place(
      ("embed", "embedding"), None, False, vocabulary
    ),
    "model.norm.weight": Place(("final_norm", "scale"), None, False, (width,)),
  }
  if not config.tied_embeddings:
    found["lm_head.weight"] = Place(
      ("output", "kernel"), None, True, vocabulary
    )
  norms = {own: (name, (width,)) for name, own in _NORMS[config.norms].items()}
  if config.query_key_norm is not None:
    each = config.query_key_norm == "head"
    norms |= {
      "self_attn.q_norm": (
        ("attention", "query_norm"),
        (features if each else queries,),
      ),
      "self_attn.k_norm": (
        ("attention", "key_norm"),
        (features if each else keys,),
      ),
    }
  linear = {
    "self_attn.q_proj": (("attention", "query"), (queries, width)),
    "self_attn.k_proj": (("attention", "key"), (keys, width)),
    "self_attn.v_proj": (("attention", "value"), (keys, width)),
    "self_attn.o_proj": (("attention", "output"), (width, queries)),
    "mlp.gate_proj": (("gate",), (config.mlp_width, width)),
    "mlp.up_proj": (("up",), (config.mlp_width, width)),
    "mlp.down_proj": (("down",), (width, config.mlp_width)),
  }
  for layer in range(config.num_layers):
    prefix = f"model.layers.{layer}"
    for name, (own, shape) in norms.items():
      found[f"{prefix}.{name}.weight"] = Place(
        ("blocks", *own, "scale"), layer, False, shape
      )
    for name, (own, shape) in linear.items():
      found[f"{prefix}.{name}.weight"] = Place(
        ("blocks", *own, "kernel"), layer, True, shape
      )
      if config.qkv_bias and own[-1] in ("query", "key", "value"):
        found[f"{prefix}.{name}.bias"] = Place(
          ("blocks", *own, "bias"), layer, False, shape[:1]
        )
  return found


def to_params(
  path: pathlib.Path | str,
  config: networks.TransformerConfig,
  tensors: Mapping[str, model_file.Tensor],
  family: families.Family,
) -> types.Params:
  """Converts a model file's tensors to float32 parameters on the host.

  Checks all names and shapes before it reads any tensor.

  Args:
    path: path of the file, for error messages.
    config: configuration of the model.
    tensors: {transformers' name: Tensor}.
    family: of the model.

  Raises:
    ModelFileError: if a tensor is missing, not of this architecture, has a
      wrong shape, or contains a non-finite number.
  """
  if config.num_layers > len(tensors):  # Too many layers to list their names.
    raise model_file.ModelFileError(
      path, f"has {len(tensors)} tensors for {config.num_layers} layers"
    )
  wanted = list_places(config)
  if family.fused:
    tensors = _split(path, config, wanted, tensors)
  for name, place in wanted.items():
    if name not in tensors:
      raise model_file.ModelFileError(path, f"tensor {name} is missing")
    if tensors[name].shape != place.shape:
      raise model_file.ModelFileError(
        path,
        f"tensor {name} is {list(tensors[name].shape)}, not"
        f" {list(place.shape)}",
      )
  for name in tensors.keys() - wanted.keys():
    raise model_file.ModelFileError(
      path, f"tensor {name} is not of this architecture"
    )
  params = {}
  for name, place in wanted.items():
    weight = tensors[name].read()
    if not np.isfinite(weight).all():
      raise model_file.ModelFileError(path, f"tensor {name} is not finite")
    if _is_offset(family, place):
      weight = weight + np.float32(1)
    weight = weight.T if place.transposed else weight
    *parents, last = place.keys
    parent = params
    for key in parents:
      parent = parent.setdefault(key, {})
    if place.layer is None:
      parent[last] = np.array(weight, np.float32, order="C")
      continue
    if last not in parent:
      stacked = (config.num_layers, *weight.shape)
      parent[last] = np.empty(stacked, np.float32)
    parent[last][place.layer] = weight
  return {"params": params}


def from_params(
  config: networks.TransformerConfig,
  params: types.Params,
  family: families.Family,
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (transformers' name, float32 array), the inverse of `to_params`."""
  own = _read_weights(config, params, family)
  if not family.fused:
    yield from own
    return
  waiting = {}
  parts = {part: whole for whole, all_ in _FUSED.items() for part in all_}
  for name, weight in own:
    prefix, place, kind = _cut_name(name)
    whole = parts.get(place)
    if whole is None:
      yield name, weight
      continue
    found = waiting.setdefault((prefix, whole), {})
    found[place] = weight
    if len(found) == len(_FUSED[whole]):
      del waiting[prefix, whole]
      own_parts = [found[part] for part in _FUSED[whole]]
      yield f"{prefix}.{whole}.{kind}", np.concatenate(own_parts)


def _cut_name(name: str) -> tuple[str, str, str]:
  """Cuts a name into (model.layers.I, what it is, weight or bias)."""
  match = re.fullmatch(r"(model\.layers\.\d+)\.(.*)\.(\w+)", name)
  return match.groups() if match else ("", name, "")


def _is_offset(family: families.Family, place: Place) -> bool:
  """Whether the file stores a scale of RMSNorm less 1."""
  return family.offset_norms and place.keys[-1] == "scale"


def _split(path, config, wanted, tensors) -> dict[str, model_file.Tensor]:
  """Splits the fused matrices of a file along their rows."""
  found = dict(tensors)

  @functools.lru_cache(maxsize=1)  # Parts are read one behind the other.
  def read(name):
    return tensors[name].read()

  for layer in range(config.num_layers):
    prefix = f"model.layers.{layer}"
    for whole, parts in _FUSED.items():
      name = f"{prefix}.{whole}.weight"
      if name not in tensors:
        raise model_file.ModelFileError(path, f"tensor {name} is missing")
      fused = found.pop(name)
      own = {part: wanted[f"{prefix}.{part}.weight"].shape for part in parts}
      expected = (sum(shape[0] for shape in own.values()), config.width)
      if fused.shape != expected:
        raise model_file.ModelFileError(
          path, f"tensor {name} is {list(fused.shape)}, not {list(expected)}"
        )
      first = 0
      for part, shape in own.items():
        rows = slice(first, first + shape[0])
        found[f"{prefix}.{part}.weight"] = model_file.Tensor(
          shape, lambda name=name, rows=rows: read(name)[rows]
        )
        first += shape[0]
  return found


def _read_weights(config, params, family) -> Iterator[tuple[str, np.ndarray]]:
  for name, place in list_places(config).items():
    leaf = params["params"]
    for key in place.keys:
      leaf = leaf[key]
    weight = np.asarray(leaf if place.layer is None else leaf[place.layer])
    weight = weight.T if place.transposed else weight
    if _is_offset(family, place):
      weight = weight - np.float32(1)
    yield name, np.array(weight, np.float32, order="C")
