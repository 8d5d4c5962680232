"""Low-rank adapters: the change they add, and the parameters they keep."""

import jax
import numpy as np
import pytest

from lco_jax import networks

_RANK, _SCALE = 2, 0.5


@pytest.fixture(scope="module")
def model():
  return networks.make_language_model(
    networks.TransformerConfig(
      vocab_size=16,
      num_layers=2,
      width=8,
      num_heads=2,
      num_kv_heads=1,
      mlp_width=12,
      qkv_bias=True,
    )
  )


@pytest.fixture(scope="module")
def params(model):
  return jax.jit(model.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def adapters(params):
  return networks.init_adapters(jax.random.key(1), params, _RANK)


def test_they_begin_without_effect(params, adapters):
  changed = networks.adapt(params, adapters, _SCALE)
  jax.tree.map(np.testing.assert_array_equal, changed, params)


def test_every_matrix_gets_its_product(params, adapters):
  rng = np.random.default_rng(0)
  own = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), adapters
  )
  changed = networks.adapt(params, own, _SCALE)
  blocks, before = changed["params"]["blocks"], params["params"]["blocks"]
  matrices = [("attention", n) for n in ("query", "key", "value", "output")]
  for *path, name in [*matrices, ("gate",), ("up",), ("down",)]:
    pair, new, old = own, blocks, before
    for step in (*path, name):
      pair, new, old = pair[step], new[step], old[step]
    for layer in range(2):
      expected = pair["a"][layer] @ pair["b"][layer] * _SCALE
      np.testing.assert_allclose(
        new["kernel"][layer] - old["kernel"][layer], expected, atol=1e-5
      )
  for rest in ("embed", "final_norm"):
    jax.tree.map(
      np.testing.assert_array_equal,
      changed["params"][rest],
      params["params"][rest],
    )
  np.testing.assert_array_equal(
    blocks["attention"]["query"]["bias"], before["attention"]["query"]["bias"]
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(own))
  # Rank × (in + out) of 8·8, 2 × 8·4, 8·8, 2 × 8·12 and 12·8, in two layers.
  assert count == 2 * _RANK * (16 + 12 + 12 + 16 + 20 + 20 + 20)


def test_parameters_on_the_host_stay_as_they_are(params, adapters):
  own = jax.tree.map(np.ones_like, adapters)
  host = jax.tree.map(np.array, params)
  once, twice = (networks.adapt(host, own, _SCALE) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, host, params)
  jax.tree.map(np.testing.assert_array_equal, once, twice)


def test_the_first_gradient_is_of_b_alone(model, params, adapters):
  """As B is 0, A has no effect yet."""

  def loss(adapters):
    logits, _ = model.apply(
      networks.adapt(params, adapters, _SCALE),
      np.arange(4)[None],
      np.zeros(1, int),
    )
    return logits[0, -1, 0]

  gradients = jax.jit(jax.grad(loss))(adapters)
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert (np.abs(leaf).max() > 0) == (path[-1].key == "b"), path
