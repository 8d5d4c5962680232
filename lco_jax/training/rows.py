"""Rows of a batch, in an order that keeps those of a device together.

A batch has K steps of N streams. Devices along `partitioning.FSDP_AXIS` divide
the streams into S shards. Rows are ordered by shard, step, and stream of the
shard; chunks and microbatches take as many from each shard. Without such an
axis S is 1, and rows are ordered by step, then stream.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lco_jax.networks import partitioning


def _count_shards() -> int:
  """S, shards of the streams under the mesh that a program runs under."""
  return partitioning.axis_size(partitioning.FSDP_AXIS)


def flatten(tree: Any) -> Any:
  """Makes rows of arrays [K, N, ...]: [K · N, ...]."""
  shards = _count_shards()

  def flatten_leaf(leaf):
    steps, streams = leaf.shape[:2]
    apart = leaf.reshape(steps, shards, streams // shards, *leaf.shape[2:])
    rows = jnp.moveaxis(apart, 1, 0).reshape(-1, *leaf.shape[2:])
    return _along_shards(rows)

  return jax.tree.map(flatten_leaf, tree)


def unflatten(tree: Any, steps: int) -> Any:
  """Undoes `flatten` of K steps."""
  shards = _count_shards()

  def unflatten_leaf(leaf):
    apart = leaf.reshape(shards, steps, -1, *leaf.shape[1:])
    apart = jnp.moveaxis(apart, 0, 1)
    return apart.reshape(steps, -1, *leaf.shape[1:])

  return jax.tree.map(unflatten_leaf, tree)


def join(one: Array, other: Array) -> Array:
  """Joins rows [R, ...] and [Q, ...] of two arrays, shard by shard."""
  shards = _count_shards()
  apart = [x.reshape(shards, -1, *x.shape[1:]) for x in (one, other)]
  joined = jnp.concatenate(apart, axis=1).reshape(-1, *one.shape[1:])
  return _along_shards(joined)


def repeat(tree: Any, steps: int, axis: int = 0) -> Any:
  """Repeats arrays of N streams for K steps, as rows.

  Args:
    tree: arrays [..., N, ...].
    steps: K.
    axis: of the streams.

  Returns:
    Arrays [..., K · N, ...].
  """
  shards = _count_shards()

  def repeat_leaf(leaf):
    before, after = leaf.shape[:axis], leaf.shape[axis + 1 :]
    apart = leaf.reshape(*before, shards, 1, -1, *after)
    shape = list(apart.shape)
    shape[axis + 1] = steps
    return jnp.broadcast_to(apart, shape).reshape(*before, -1, *after)

  return jax.tree.map(repeat_leaf, tree)


def take_first(tree: Any, steps: int) -> Any:
  """Takes the N rows of the first of K steps, the streams in their order."""
  return jax.tree.map(lambda leaf: leaf[0], unflatten(tree, steps))


def take_steps(batch: Any, indices: Array) -> Any:
  """Gathers time steps, stream by stream.

  Args:
    batch: pytree of [T, N, ...].
    indices: int32[K, N], times to take of each stream.

  Returns:
    The rows [K · N, ...].
  """
  shards = _count_shards()
  steps, streams = indices.shape
  own = streams // shards
  times = jnp.moveaxis(indices.reshape(steps, shards, own), 1, 0)
  rows = (times * own + jnp.arange(own)[None, None]).reshape(shards, -1)

  def take(leaf):
    apart = leaf.reshape(-1, shards, own, *leaf.shape[2:])
    apart = jnp.moveaxis(apart, 1, 0).reshape(shards, -1, *leaf.shape[2:])
    if shards == 1:
      return apart[0][rows[0]]
    taken = jax.vmap(lambda own, rows: own[rows])(apart, rows)
    return _along_shards(taken.reshape(-1, *leaf.shape[2:]))

  return jax.tree.map(take, batch)


def split_streams(tree: Any, steps: int, parts: int) -> Any:
  """Divides rows of K steps into parts of fewer streams: [parts, rows, ...].

  All steps of a stream stay together.
  """
  shards = _count_shards()

  def split(leaf):
    apart = leaf.reshape(shards, steps, parts, -1, *leaf.shape[1:])
    apart = jnp.moveaxis(apart, 2, 0)
    return _along_shards(apart.reshape(parts, -1, *leaf.shape[1:]), axis=1)

  return jax.tree.map(split, tree)


def fit_chunks(num_rows: int, most: int) -> int:
  """Returns the rows of a chunk, so that all chunks are about as large.

  Args:
    num_rows: R, of all shards, as is the result.
    most: rows that a chunk may have of each shard.
  """
  shards = _count_shards()
  own = num_rows // shards
  return shards * -(-own // -(-own // most))


def divide(num_rows: int, most: int) -> int:
  """Returns the rows of each of at most `most` chunks that are all equal."""
  own = num_rows // _count_shards()
  count = next(n for n in range(most, 0, -1) if own % n == 0)
  return num_rows // count


def split_chunks(tree: Any, size: int) -> Any:
  """Divides rows [R, ...] into chunks [chunks, size, ...].

  Args:
    tree: of rows; zeros fill up the last chunk.
    size: rows of a chunk, from `fit_chunks`.
  """
  shards = _count_shards()

  def split(leaf):
    chunks = -(-len(leaf) // size)
    apart = leaf.reshape(shards, -1, *leaf.shape[1:])
    missing = chunks * size // shards - apart.shape[1]
    if missing:
      gaps = [(0, 0), (0, missing)] + [(0, 0)] * (leaf.ndim - 1)
      apart = jnp.pad(apart, gaps)
    apart = apart.reshape(shards, chunks, -1, *leaf.shape[1:])
    apart = jnp.moveaxis(apart, 1, 0).reshape(chunks, size, *leaf.shape[1:])
    return _along_shards(apart, axis=1)

  return jax.tree.map(split, tree)


def join_chunks(tree: Any, num_rows: int) -> Any:
  """Undoes `split_chunks` of R rows."""
  shards = _count_shards()

  def join(leaf):
    chunks, _, *rest = leaf.shape
    apart = jnp.moveaxis(leaf.reshape(chunks, shards, -1, *rest), 0, 1)
    apart = apart.reshape(shards, -1, *rest)[:, : num_rows // shards]
    return apart.reshape(-1, *rest)

  return jax.tree.map(join, tree)


def _along_shards(leaf: Array, axis: int = 0) -> Array:
  """Lays an array's axis of rows along the devices of the shards."""
  after = (None,) * (leaf.ndim - axis - 1)
  return partitioning.constrain(leaf, partitioning.FSDP_AXIS, *after)
