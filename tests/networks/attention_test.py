"""Attention against loops in float64; some queries at a time are as all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import networks
from lco_jax.networks import attention
from lco_jax.networks.transformer_config import (
  TransformerConfig,
  list_layer_options,
)

_BATCH, _GROUPS, _KV_HEADS, _LENGTH, _SLOTS, _FEATURES = 3, 2, 2, 7, 10, 4
_OPTIONS = (
  {},
  {"window": 3},
  {"attention_cap": 0.5, "attention_scale": 0.3},
)


def _config(**changes):
  return TransformerConfig(
    **{
      "vocab_size": 20,
      "num_layers": 1,
      "width": 16,
      "num_heads": _GROUPS * _KV_HEADS,
      "num_kv_heads": _KV_HEADS,
      "mlp_width": 16,
      "dtype": "float64",
    }
    | changes
  )


def _inputs(length=_LENGTH, slots=_SLOTS):
  """Queries behind cached tokens; sequences padded by 0, 2 and 5 slots."""
  rng = np.random.default_rng(0)
  padding = np.array([0, 2, 5], np.int32)[:, None]
  own = np.arange(slots - length, slots)[None] - padding
  cached = np.arange(slots)[None] - padding
  shapes = (
    (_BATCH, _KV_HEADS, _GROUPS, length, _FEATURES),
    (_BATCH, _KV_HEADS, slots, _FEATURES),
    (_BATCH, _KV_HEADS, slots, _FEATURES),
  )
  arrays = [rng.normal(size=shape) for shape in shapes]
  positions = attention.Positions(jnp.int32(own), jnp.int32(cached))
  return [*map(jnp.asarray, arrays), positions]


def _attend(changes, query, key, value, positions):
  config = _config(**changes)
  (options,) = list_layer_options(config)
  return attention.attend(config, options, query, key, value, positions)


def _oracle(config, query, key, value, positions):
  result = np.zeros(query.shape)
  scale = config.attention_scale or _FEATURES**-0.5
  for place in np.ndindex(query.shape[:-1]):
    row, head, _, token = place
    own = positions.own[row, token]
    seen = [
      slot
      for slot, position in enumerate(positions.cached[row])
      if 0 <= position <= own and own - position < (config.window or np.inf)
    ]
    if not seen:
      continue  # A padded query: nobody reads it.
    scores = key[row, head, seen] @ query[place] * scale
    if config.attention_cap:
      scores = config.attention_cap * np.tanh(scores / config.attention_cap)
    weights = np.exp(scores - scores.max())
    result[place] = weights / weights.sum() @ value[row, head, seen]
  return result


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("block", [0, 3])
@pytest.mark.parametrize("changes", _OPTIONS)
def test_against_loops(changes, block):
  arrays = _inputs()
  found = _attend(changes | {"attention_block": block}, *arrays)
  expected = _oracle(_config(**changes), *jax.tree.map(np.asarray, arrays))
  real = np.asarray(arrays[-1].own >= 0)[:, None, None, :, None]
  np.testing.assert_allclose(
    np.where(real, found, 0), np.where(real, expected, 0), rtol=1e-12
  )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("block", [1, 2, 3, 6])
@pytest.mark.parametrize("changes", _OPTIONS)
def test_blocks_have_the_same_gradient(changes, block):
  """Of queries, keys and values, whether blocks divide the tokens or not."""
  *arrays, positions = _inputs()
  weight = jnp.asarray(np.random.default_rng(1).normal(size=arrays[0].shape))

  def total(arrays, block):
    own = changes | {"attention_block": block}
    return jnp.sum(weight * _attend(own, *arrays, positions))

  gradient = jax.grad(total)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13),
    gradient(arrays, block),
    gradient(arrays, 0),
  )


def test_blocks_take_less_memory():
  """In both directions: one block's weights in place of all."""
  *arrays, positions = _inputs(length=512, slots=512)
  arrays = [jnp.float32(own) for own in arrays]

  def temporary(block):
    own = {"attention_block": block, "dtype": "float32"}

    def total(arrays):
      return jnp.sum(jnp.square(_attend(own, *arrays, positions)))

    compiled = jax.jit(jax.value_and_grad(total)).lower(arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  weights = _BATCH * _KV_HEADS * _GROUPS * 512 * 512 * 4
  assert temporary(0) > weights
  assert temporary(32) < weights / 2


@pytest.mark.third_party
def test_a_model_of_blocks_is_the_model():
  """Updates read prompts and completions in blocks, if they are told to."""

  tokens = jax.random.randint(jax.random.key(0), (3, 9), 0, 20, jnp.int32)
  padding = np.array([0, 2, 5], np.int32)

  def gradient(**changes):
    config = _config(dtype="float32", num_layers=2, **changes)
    model = networks.make_language_model(config)
    params = jax.jit(model.init)(jax.random.key(1))

    def total(params):
      logits, _ = model.apply(params, tokens, padding)
      real = jnp.arange(9)[None] >= padding[:, None]
      return jnp.sum(jnp.square(jnp.where(real[..., None], logits, 0.0)))

    return jax.jit(jax.grad(total))(params)

  for changes in ({}, {"rematerialize": True}):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4),
      gradient(attention_block=4, **changes),
      gradient(),
    )
