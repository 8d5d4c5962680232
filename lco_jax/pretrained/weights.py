"""Conversion between transformers' named weights and parameters.

    Llama, Qwen2                          parameters
    model.embed_tokens.weight   [V, W]    embed/embedding           [V, W]
    model.layers.I.….weight     [out, in] blocks/…/kernel   [layers, in, out]
    model.norm.weight           [W]       final_norm/scale          [W]
    lm_head.weight              [V, W]    output/kernel             [W, V]

The last is absent if the output layer shares the embedding's weights.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from lco_jax import networks, types
from lco_jax.pretrained import model_file


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
  norms = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "mlp_norm",
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
    for name, own in norms.items():
      found[f"{prefix}.{name}.weight"] = Place(
        ("blocks", own, "scale"), layer, False, (width,)
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
) -> types.Params:
  """Converts a model file's tensors to float32 parameters on the host.

  Checks all names and shapes before it reads any tensor.

  Args:
    path: path of the file, for error messages.
    config: configuration of the model.
    tensors: {transformers' name: Tensor}.

  Raises:
    ModelFileError: if a tensor is missing, not of this architecture, has a
      wrong shape, or contains a non-finite number.
  """
  if config.num_layers > len(tensors):  # Too many layers to list their names.
    raise model_file.ModelFileError(
      path, f"has {len(tensors)} tensors for {config.num_layers} layers"
    )
  wanted = list_places(config)
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
  config: networks.TransformerConfig, params: types.Params
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (transformers' name, float32 array), the inverse of `to_params`."""
  for name, place in list_places(config).items():
    leaf = params["params"]
    for key in place.keys:
      leaf = leaf[key]
    weight = np.asarray(leaf if place.layer is None else leaf[place.layer])
    weight = weight.T if place.transposed else weight
    yield name, np.array(weight, np.float32, order="C")
