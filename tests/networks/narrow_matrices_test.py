"""Matrices in few bits: what is kept, and what is computed with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import networks
from lco_jax.networks import narrow_matrices

_CONFIG = networks.TransformerConfig(
  vocab_size=48,
  num_layers=3,
  width=64,
  num_heads=4,
  num_kv_heads=2,
  mlp_width=128,
  qkv_bias=True,
  window=4,
  window_layers=(0, 2),
)
_TOKENS = jnp.arange(16, dtype=jnp.int32).reshape(2, 8) * 5 % 48
_PADDING = jnp.array([0, 2], jnp.int32)


@pytest.fixture(scope="module")
def model():
  return networks.make_language_model(_CONFIG)


@pytest.fixture(scope="module")
def params(model):
  own = jax.jit(model.init)(jax.random.key(0))
  return jax.tree.map(np.asarray, own)


def _quantize_one(value, scale, fmt):
  """The nearest of the values that a code can have, by trying all."""
  levels = narrow_matrices._NF4
  if fmt == "int8":
    levels = np.arange(-127, 128, dtype=np.float32) / np.float32(127)
  return levels[np.argmin(np.abs(levels - value / scale))] * scale


@pytest.mark.parametrize("fmt", networks.NARROW_FORMATS)
@pytest.mark.parametrize("size", [128, 96, 48])
def test_widened_matrices(fmt, size):
  """Each number is the nearest that a block's scale allows."""
  rng = np.random.default_rng(0)
  matrix = rng.normal(size=(3, 5, size)).astype(np.float32)
  matrix[0, 0] = 0.0
  own = networks.narrow({"kernel": matrix}, fmt)
  found = np.asarray(networks.widen(own)["kernel"])
  block = {128: 64, 96: 32, 48: 16}[size]
  expected = np.zeros_like(matrix)
  for place in np.ndindex(matrix.shape):
    first = place[-1] // block * block
    scale = np.abs(matrix[place[:-1]][first : first + block]).max()
    if scale:
      expected[place] = _quantize_one(matrix[place], scale, fmt)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert (found[0, 0] == 0).all()
  rows = jnp.array([2, 0])
  flat = jax.tree.map(lambda leaf: leaf[1], own["kernel"])
  np.testing.assert_array_equal(
    narrow_matrices.take_rows(flat, rows), found[1][np.array([2, 0])]
  )
  assert narrow_matrices.find_shape(own["kernel"]) == matrix.shape


def test_what_stays_wide(params):
  own = networks.narrow(
    {"kernel": np.ones((4, 24)), "scale": np.ones(64), "bias": np.ones(64)},
    "nf4",
  )
  assert all(isinstance(leaf, np.ndarray) for leaf in own.values())
  assert not narrow_matrices.is_narrow(params)
  narrowed = networks.narrow(params, "nf4")
  assert narrow_matrices.is_narrow(narrowed)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert networks.count_numbers(narrowed) == count


def test_bytes_of_a_model(params):
  """Matrices in blocks of 64: 4.5 bits a number for NF4, 8.5 for int8."""
  blocks = {"blocks": params["params"]["blocks"]["gate"]}
  numbers = networks.count_numbers(blocks)
  for fmt, bits in (("nf4", 4.5), ("int8", 8.5)):
    leaves = jax.tree.leaves(networks.narrow(blocks, fmt))
    assert sum(leaf.nbytes for leaf in leaves) * 8 == numbers * bits
  assert 4.5 / 16 < 0.35


@pytest.mark.parametrize("fmt", networks.NARROW_FORMATS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rematerialize", [False, True])
def test_logits_are_those_of_the_widened_model(fmt, tied, rematerialize):
  config = dataclasses.replace(
    _CONFIG, tied_embeddings=tied, rematerialize=rematerialize
  )
  model = networks.make_language_model(config)
  params = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(1)))
  own = networks.narrow(params, fmt)
  wide = networks.widen(own)

  @jax.jit
  def run(params):
    logits, _ = model.apply(params, _TOKENS, _PADDING)
    read, cache = model.reader(params, 2, 8)
    hidden, cache = read(_TOKENS[:, :5], _PADDING, cache, 0)
    last, _ = read(_TOKENS[:, 5:], _PADDING, cache, 5)
    hidden = jnp.concatenate([hidden, last], axis=1)
    return logits, model.head(params, hidden)

  with_cache = model.hidden(own, _TOKENS, _PADDING, model.empty_cache(2, 8), 0)[
    0
  ]
  (logits, in_parts), (expected, _) = run(own), run(wide)
  real = np.arange(8) >= np.asarray(_PADDING)[:, None]
  for found in (logits, in_parts, model.head(own, with_cache)):
    np.testing.assert_allclose(found[real], expected[real], atol=2e-5)
  rough, _ = jax.jit(model.apply)(params, _TOKENS, _PADDING)
  assert np.abs(rough - expected).max() > 1e-3


@pytest.mark.parametrize("fmt", networks.NARROW_FORMATS)
def test_gradients_of_adapters(model, params, fmt):
  """They equal the gradients of the widened model in float32."""
  adapters = networks.init_adapters(jax.random.key(1), params, 2)
  adapters = jax.tree.map(
    lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(2), leaf.shape),
    adapters,
  )
  own = networks.narrow(params, fmt)

  @jax.jit
  def gradient(base):
    def loss(adapters):
      adapted = networks.adapt(base, adapters, 0.5)
      logits, _ = model.apply(adapted, _TOKENS, _PADDING)
      return jnp.mean(jax.nn.logsumexp(logits * logits, axis=-1))

    return jax.value_and_grad(loss)(adapters)

  (value, found), (other, expected) = (
    gradient(own),
    gradient(networks.widen(own)),
  )
  np.testing.assert_allclose(value, other, rtol=1e-5)
  size = np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(expected)))
  difference = jax.tree.map(lambda a, b: a - b, found, expected)
  error = np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(difference)))
  assert size > 0.1 and error < 1e-4 * size
