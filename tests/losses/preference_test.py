"""Losses on pairs against an oracle, and their purpose."""

import jax
import jax.numpy as jnp
import numpy as np

from lco_jax import losses
from tests import oracles


def _draw():
  rng = np.random.default_rng(0)
  return rng.normal(size=(2, 3, 40)), rng.random((3, 40)) < 0.6


def test_value_and_gradient_against_an_oracle(float64):
  (chosen, rejected), where = _draw()

  def oracle(chosen, rejected):
    margin = 0.7 * (chosen - rejected)
    return np.where(where, -np.log(1 / (1 + np.exp(-margin))), 0.0)

  value, pull = jax.vjp(
    lambda first, second: losses.dpo_loss(first, second, 0.7, where),
    chosen,
    rejected,
  )
  np.testing.assert_allclose(value, oracle(chosen, rejected), rtol=1e-10)
  gradients = pull(jnp.ones_like(value))
  np.testing.assert_allclose(
    gradients[0],
    oracles.gradient(lambda x: oracle(x, rejected), chosen),
    atol=1e-8,
  )
  np.testing.assert_allclose(gradients[1], -gradients[0], atol=1e-12)


def test_qrm_against_an_oracle(float64):
  (chosen, rejected), where = _draw()

  def oracle(chosen, rejected):
    probability = 1 / (1 + np.exp(1.5 - 0.4 * (chosen - rejected)))
    return np.where(where, -np.log(probability) - 0.3 * chosen, 0.0)

  value, pull = jax.vjp(
    lambda first, second: losses.qrm_loss(
      first, second, 0.3, where, beta=0.4, margin=1.5
    ),
    chosen,
    rejected,
  )
  np.testing.assert_allclose(value, oracle(chosen, rejected), rtol=1e-10)
  for index, gradient in enumerate(pull(jnp.ones_like(value))):

    def varied(x, index=index):
      pair = [chosen, rejected]
      pair[index] = x
      return oracle(*pair)

    expected = oracles.gradient(varied, (chosen, rejected)[index])
    np.testing.assert_allclose(gradient, expected, atol=1e-8)
  # The authors' own number: s_w = −1, s_l = −2, c = 1, β = 0.2, γ = 2.
  authors = losses.qrm_loss(jnp.float64(-1), jnp.float64(-2), 1.0)
  np.testing.assert_allclose(authors, 2.9530, atol=5e-5)
  nothing = losses.qrm_loss(chosen * np.nan, rejected, 0.3, where & False)
  assert not np.asarray(nothing).any()


def test_nothing_under_the_mask_counts():
  (chosen, rejected), where = _draw()
  clean = [
    np.where(where, x, 0.0).astype(np.float32) for x in (chosen, rejected)
  ]
  dirty = [np.where(where, x, np.nan).astype(np.float32) for x in clean]

  def run(chosen, rejected):
    return jax.value_and_grad(
      lambda w: jnp.sum(losses.dpo_loss(w, rejected, 0.7, where))
    )(chosen)

  for a, b in zip(run(*clean), run(*dirty), strict=True):
    np.testing.assert_array_equal(a, b)


def test_large_margins_neither_overflow_nor_pull():
  gradient = jax.grad(lambda w: losses.dpo_loss(w, jnp.float32(0.0), 1.0))
  assert gradient(jnp.float32(200.0)) == 0
  assert gradient(jnp.float32(-1e4)) == -1


def test_rebel_against_an_oracle(float64):
  rng = np.random.default_rng(0)
  first, second, difference = map(jnp.asarray, rng.normal(size=(3, 40)))

  def oracle(first, second):
    return (0.7 * (first - second) - np.asarray(difference)) ** 2

  value, pull = jax.vjp(
    lambda *x: losses.rebel_loss(*x, 0.7), first, second, difference
  )
  np.testing.assert_allclose(value, oracle(first, second), rtol=1e-12)
  gradients = pull(jnp.ones_like(value))
  np.testing.assert_allclose(
    gradients[0],
    oracles.gradient(lambda x: oracle(x, np.asarray(second)), first),
    atol=1e-8,
  )
  np.testing.assert_allclose(gradients[1], -gradients[0], atol=1e-12)
  assert not gradients[2].any()
  # Its least is where the ratio is the difference over β: that of π*.
  assert losses.rebel_loss(*map(jnp.float64, (2.0, 0.0, 1.4)), 0.7) < 1e-20
