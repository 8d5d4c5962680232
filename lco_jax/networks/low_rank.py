"""Low-rank adapters (LoRA): few trained parameters for all layers of a model.

W + (α / r) · A B replaces each matrix W of the blocks. W stays fixed; only
A [in, r] and B [r, out] are trained. They are a separate part of the
parameters, so only they have gradients and optimizer state.

Source: Hu et al. 2021, arXiv:2106.09685.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from lco_jax import types
from lco_jax.networks import narrow_matrices


def init_adapters(
  key: types.PRNGKey, params: types.Params, rank: int
) -> types.Params:
  """Initialises adapters with random A and zero B, which change nothing.

  Args:
    key: PRNG key.
    params: parameters of a language model.
    rank: r ≥ 1.

  Returns:
    {"a": float32[layers, in, r], "b": float32[layers, r, out]} for each linear
    layer of the blocks, whose matrix is float[layers, in, out].
  """
  found = {}
  matrices = {
    path[:-1]: leaf
    for path, leaf in _list_matrices(params).items()
    if path[-1] == "kernel"
  }
  for own_key, (path, matrix) in zip(
    jax.random.split(key, len(matrices)), matrices.items(), strict=True
  ):
    layers, num_in, num_out = narrow_matrices.find_shape(matrix)
    noise = jax.random.normal(own_key, (layers, num_in, rank))
    found[(*path, "a")] = noise * num_in**-0.5
    found[(*path, "b")] = jnp.zeros((layers, rank, num_out))
  return traverse_util.unflatten_dict(found)


def adapt(
  params: types.Params, adapters: types.Params, scale: float
) -> types.Params:
  """Adds the adapters' products to the matrices of a model.

  The products with narrow matrices are made where these are widened.

  Args:
    params: parameters of the model; not modified.
    adapters: from `init_adapters`, possibly trained.
    scale: α / r.
  """
  blocks = _list_matrices(params)
  own = traverse_util.flatten_dict(adapters)
  for path in {path[:-1] for path in own}:
    a, b = own[(*path, "a")], own[(*path, "b")]
    matrix = blocks[(*path, "kernel")]
    if isinstance(matrix, dict):
      blocks[(*path, "kernel")] = narrow_matrices.add_adapters(
        matrix, scale * a, b
      )
    else:
      change = jnp.einsum("lir,lro->lio", a, b)
      blocks[(*path, "kernel")] = matrix + scale * change
  changed = {"blocks": traverse_util.unflatten_dict(blocks)}
  return {"params": params["params"] | changed}


def _list_matrices(params: types.Params) -> dict[tuple[str, ...], Any]:
  """Lists the blocks' parameters, {path: array or narrow matrix}."""
  return traverse_util.flatten_dict(
    params["params"]["blocks"],
    is_leaf=lambda path, _: path[-1:] == ("kernel",),
  )
