"""Low-rank adapters (LoRA): few parameters that change all of a model's layers.

W + (α / r) · A B in place of each matrix W of the blocks. W stays as it was;
A [in, r] and B [r, out] are what is trained, a part of the parameters of its
own, so that only they have gradients and an optimizer's state.

Source: Hu et al. 2021, arXiv:2106.09685.
"""

import jax
import jax.numpy as jnp
from flax import traverse_util

from lco_jax import types


def init_adapters(
  key: types.PRNGKey, params: types.Params, rank: int
) -> types.Params:
  """Adapters that change nothing yet: A is random, B zero.

  Args:
    key: PRNG key.
    params: of a language model.
    rank: r ≥ 1.

  Returns:
    {"a": float32[layers, in, r], "b": float32[layers, r, out]} in place of each
    linear layer of the blocks, whose matrix is float[layers, in, out].
  """
  found = {}
  matrices = {
    path[:-1]: leaf
    for path, leaf in _blocks(params).items()
    if path[-1] == "kernel"
  }
  for own_key, (path, matrix) in zip(
    jax.random.split(key, len(matrices)), matrices.items(), strict=True
  ):
    layers, num_in, num_out = matrix.shape
    noise = jax.random.normal(own_key, (layers, num_in, rank))
    found[(*path, "a")] = noise * num_in**-0.5
    found[(*path, "b")] = jnp.zeros((layers, rank, num_out))
  return traverse_util.unflatten_dict(found)


def adapted(
  params: types.Params, adapters: types.Params, scale: float
) -> types.Params:
  """The parameters of the model that adapters make of another.

  Args:
    params: of the other.
    adapters: from `init_adapters`, trained since.
    scale: α / r.
  """
  blocks, own = _blocks(params), traverse_util.flatten_dict(adapters)
  for path in {path[:-1] for path in own}:
    change = jnp.einsum("lir,lro->lio", own[(*path, "a")], own[(*path, "b")])
    matrix = blocks[(*path, "kernel")]
    blocks[(*path, "kernel")] = matrix + scale * change  # Not in place.
  changed = {"blocks": traverse_util.unflatten_dict(blocks)}
  return {"params": params["params"] | changed}


def _blocks(params: types.Params) -> dict[tuple[str, ...], jax.Array]:
  """The parameters of all layers, by their path."""
  return traverse_util.flatten_dict(params["params"]["blocks"])
