"""Conversion between transformers' named weights and parameters.

    transformers                          parameters
    model.embed_tokens.weight   [V, W]    embed/embedding           [V, W]
    model.layers.I.….weight     [out, in] blocks/…/kernel   [layers, in, out]
    model.norm.weight           [W]       final_norm/scale          [W]
    lm_head.weight              [V, W]    output/kernel             [W, V]

The last is absent if the output layer shares the embedding's weights. Families
whose files fuse matrices or store RMSNorm's scales less 1 are converted here.
"""

import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lco_jax import networks, types
from lco_jax.pretrained import families, model_file, stored_array

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
# Rows of a matrix that fit a processor's cache while they are transposed.
_ROWS_AT_A_TIME = 64
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
  """Converts a model file's tensors to parameters, of StoredArrays.

  Checks all names and shapes, and reads nothing.

  Args:
    path: path of the file, for error messages.
    config: configuration of the model.
    tensors: {transformers' name: Tensor}.
    family: of the model.

  Raises:
    ModelFileError: if a tensor is missing, not of this architecture, or has a
      wrong shape.
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
  layers: dict[tuple[str, ...], list[str]] = {}
  for name, place in wanted.items():  # Layer by layer.
    layers.setdefault(place.keys, []).append(name)
  params = {}
  for keys, names in layers.items():
    *parents, last = keys
    parent = params
    for key in parents:
      parent = parent.setdefault(key, {})
    place = wanted[names[0]]
    own = {name: tensors[name] for name in names}
    parent[last] = _store(path, own, place, _is_offset(family, place))
  return {"params": params}


def _store(
  path: pathlib.Path | str,
  tensors: Mapping[str, model_file.Tensor],
  place: Place,
  is_offset: bool,
) -> stored_array.StoredArray:
  """Makes a parameter of one tensor, or of those of all layers, in order."""

  def read_weight(name: str, index: Sequence[slice]) -> np.ndarray:
    own = index[::-1] if place.transposed else index
    weight = tensors[name].read_part(own)
    if not np.isfinite(weight).all():
      raise model_file.ModelFileError(path, f"tensor {name} is not finite")
    if is_offset:
      weight = weight + np.float32(1)
    return weight.T if place.transposed else weight

  names = list(tensors)
  shape = place.shape[::-1] if place.transposed else place.shape
  if place.layer is None:
    return stored_array.StoredArray(
      shape,
      # A copy: a view would keep the file mapped, and change with it.
      lambda index: np.array(read_weight(names[0], index), order="C"),
      row_axis=len(shape) - 1 if place.transposed else 0,
    )

  def read_layers(index):
    chosen, *own = index
    sizes = [
      len(range(size)[part]) for size, part in zip(shape, own, strict=True)
    ]
    found = np.empty((len(names[chosen]), *sizes), np.float32)
    for layer, name in zip(found, names[chosen], strict=True):
      weight = read_weight(name, own)
      # Some rows of the file at a time: to transpose a matrix as a whole takes
      # four times as long.
      for first in range(0, weight.shape[-1], _ROWS_AT_A_TIME):
        part = (..., slice(first, first + _ROWS_AT_A_TIME))
        layer[part] = weight[part]
    return found

  return stored_array.StoredArray((len(names), *shape), read_layers)


def from_params(
  config: networks.TransformerConfig,
  params: types.Params,
  family: families.Family,
  read: Callable[[Any], np.ndarray] = np.asarray,
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (transformers' name, float32 array), the inverse of `to_params`.

  Args:
    config: configuration of the model.
    params: its parameters.
    family: of the model.
    read: brings a parameter, or that of one layer, to the host.
  """
  own = _read_weights(config, params, family, read)
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
        found[f"{prefix}.{part}.weight"] = _take_rows(fused, first, shape)
        first += shape[0]
  return found


def _take_rows(
  tensor: model_file.Tensor, first: int, shape: tuple[int, ...]
) -> model_file.Tensor:
  """Makes a tensor of some rows of another one."""

  def read_part(index):
    rows = range(first, first + shape[0])[index[0]]
    return tensor.read_part((slice(rows.start, rows.stop), *index[1:]))

  return model_file.Tensor(shape, read_part)


def _read_weights(
  config, params, family, read
) -> Iterator[tuple[str, np.ndarray]]:
  for name, place in list_places(config).items():
    leaf = params["params"]
    for key in place.keys:
      leaf = leaf[key]
    weight = read(leaf if place.layer is None else leaf[place.layer])
    weight = weight.T if place.transposed else weight
    if _is_offset(family, place):
      weight = weight - np.float32(1)
    yield name, np.array(weight, np.float32, order="C")
