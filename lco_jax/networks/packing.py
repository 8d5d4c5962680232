"""Packing: the slots of B sequences that hold tokens, without the others.

Linear layers and norms then work on packed tokens alone. Attention spreads them
over their sequences' slots again. Both directions gather rows, forwards and
backwards: each is the other's transpose.

Devices along `partitioning.FSDP_AXIS` divide the sequences into S shards, each
of which is packed by itself. Axes: sequences B, slots L, packed tokens T.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lco_jax.networks import partitioning


class Packing(NamedTuple):
  """Which slots hold packed tokens.

  Attributes:
    slots: int32[S, T / S], the slot of each packed token among those of its
      shard, b · L + l; their number where no token is left.
    places: int32[S, B · L / S], the packed token of each slot; T / S where the
      slot holds none.
  """

  slots: Array
  places: Array


def make_packing(mask: Array, size: int) -> Packing:
  """Packs the slots of a mask, in their order.

  Args:
    mask: bool[B, L], slots that hold tokens. B is a multiple of S.
    size: T, a multiple of S. No shard may have more than T / S tokens; those
      behind would be lost.
  """
  shards = partitioning.axis_size(partitioning.FSDP_AXIS)

  def pack_shard(mask):
    (slots,) = jnp.nonzero(mask, size=size // shards, fill_value=len(mask))
    places = jnp.where(mask, jnp.cumsum(mask) - 1, size // shards)
    return Packing(slots.astype(jnp.int32), places.astype(jnp.int32))

  return jax.vmap(pack_shard)(mask.reshape(shards, -1))


@jax.custom_vjp
def pack(x: Array, packing: Packing) -> Array:
  """Takes the packed tokens of slots [B · L, ...]: [T, ...], zeros for none."""
  return _take(x, packing.slots)


@jax.custom_vjp
def unpack(x: Array, packing: Packing) -> Array:
  """Spreads packed tokens [T, ...] over slots [B · L, ...], else zeros."""
  return _take(x, packing.places)


pack.defvjp(
  lambda x, packing: (pack(x, packing), packing),
  lambda packing, gradient: (unpack(gradient, packing), None),
)
unpack.defvjp(
  lambda x, packing: (unpack(x, packing), packing),
  lambda packing, gradient: (pack(gradient, packing), None),
)


def _take(x: Array, index: Array) -> Array:
  """Takes rows of each shard: zeros where the index is beyond the last one."""
  shards = len(index)

  def take(own, index):
    return own.at[index].get(mode="fill", fill_value=0)

  taken = jax.vmap(take)(x.reshape(shards, -1, *x.shape[1:]), index)
  taken = taken.reshape(-1, *x.shape[1:])
  rest = (None,) * (taken.ndim - 1)
  return partitioning.constrain(taken, partitioning.FSDP_AXIS, *rest)
