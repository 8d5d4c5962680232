"""Rows of a batch: their order, on one device and along shards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax.networks import partitioning
from lco_jax.training import placement, rows

_STEPS, _STREAMS = 3, 8


def _run(function, shards, *arrays):
  """Runs a function of [K, N, ...] under a mesh with so many shards."""
  sizes = placement.parse_sizes(f"{partitioning.FSDP_AXIS}:{shards}")
  mesh = placement.make_mesh(1, _STREAMS, jax.devices()[:shards], sizes)
  found = placement.compile(
    lambda *own: jax.tree.map(
      lambda leaf: leaf[None], function(*(leaf[0] for leaf in own))
    ),
    mesh,
    (placement.SEEDS,) * len(arrays),
    placement.SEEDS,
    *(array[None] for array in arrays),
  )(*(array[None] for array in arrays))
  return jax.tree.map(lambda leaf: np.asarray(leaf)[0], found)


def _batch():
  return np.arange(_STEPS * _STREAMS * 2).reshape(_STEPS, _STREAMS, 2)


@pytest.mark.parametrize("shards", [1, 4])
def test_rows_of_a_shard_are_together(shards):
  batch = _batch()
  found = _run(rows.flatten, shards, batch)
  own = _STREAMS // shards
  expected = np.concatenate(
    [batch[:, own * n : own * (n + 1)].reshape(-1, 2) for n in range(shards)]
  )
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shards", [1, 4])
def test_what_is_taken_apart_comes_together(shards):
  batch = _batch()

  def there_and_back(batch):
    flat = rows.flatten(batch)
    size = rows.fit_chunks(len(flat), 2)
    chunks = rows.split_chunks(flat, size)
    return (
      rows.unflatten(flat, _STEPS),
      rows.unflatten(rows.join_chunks(chunks, len(flat)), _STEPS),
      rows.take_first(flat, _STEPS),
      rows.unflatten(rows.repeat(batch[0], _STEPS), _STEPS),
      rows.unflatten(
        jnp.moveaxis(rows.repeat(batch[0].T, _STEPS, axis=1), 0, 1), _STEPS
      ),
    )

  same, joined, first, repeated, along = _run(there_and_back, shards, batch)
  np.testing.assert_array_equal(same, batch)
  np.testing.assert_array_equal(joined, batch)
  np.testing.assert_array_equal(first, batch[0])
  np.testing.assert_array_equal(repeated, np.stack([batch[0]] * _STEPS))
  np.testing.assert_array_equal(along, repeated)


@pytest.mark.parametrize("shards", [1, 4])
def test_each_stream_takes_its_own_steps(shards):
  batch = _batch()
  times = np.random.default_rng(0).integers(0, _STEPS, (2, _STREAMS))

  def take(batch, times):
    return rows.unflatten(rows.take_steps(batch, times), 2)

  found = _run(take, shards, batch, times)
  expected = np.take_along_axis(batch, times[..., None], axis=0)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shards", [1, 4])
def test_parts_have_all_steps_of_a_stream(shards):
  batch = _batch()

  def split(batch):
    parts = rows.split_streams(rows.flatten(batch), _STEPS, parts=2)
    return jax.vmap(functools.partial(rows.unflatten, steps=_STEPS))(parts)

  parts = _run(split, shards, batch)
  assert parts.shape == (2, _STEPS, _STREAMS // 2, 2)
  streams = [tuple(s) for p in parts for s in np.moveaxis(p, 1, 0)[..., 0]]
  assert sorted(streams) == sorted(map(tuple, batch[..., 0].T))
  owners = parts[:, 0, :, 0] // 2 // (_STREAMS // shards)
  for own in owners:  # A part has as many streams of each shard.
    counts = np.bincount(own, minlength=shards)
    assert counts.tolist() == [_STREAMS // 2 // shards] * shards


@pytest.mark.parametrize("shards", [1, 4])
def test_chunks_take_as_many_of_each_shard(shards):
  count = _STEPS * _STREAMS

  def split(flat):
    return rows.split_chunks(flat, rows.fit_chunks(len(flat), 4))

  chunks = _run(split, shards, np.arange(1, 1 + count))
  kept = chunks[chunks > 0]
  assert sorted(kept) == list(range(1, 1 + count))
  owners = (chunks - 1) // (count // shards)
  for chunk, own in zip(chunks, owners, strict=True):
    counts = np.bincount(own[chunk > 0], minlength=shards)
    assert counts.max() - counts.min() == 0 and counts.max() <= 4
