"""The relatives of LCO, and the sampled surrogates beside PPO's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from lco_jax import diagnostics, losses, numerics
from tests import oracles

_BETA, _CLIP, _MOST = 0.7, 0.25, 3.0


def _mdpo(x, old, a):
  ratio = np.exp(x - old)
  return -ratio * a + _BETA * (ratio * np.log(ratio) - ratio + 1)


def _awr(x, old, a):
  return -np.minimum(np.exp(a / _BETA), _MOST) * x


def _apa(x, old, a):
  return (a - _BETA * (x - old)) ** 2


# Name: (loss of (log π(a), log π_old(a), A, where), the same in NumPy).
_LOSSES = {
  "mdpo": (functools.partial(losses.mdpo_loss, beta=_BETA), _mdpo),
  "awr": (
    lambda x, old, a, where: losses.awr_loss(x, a, _BETA, _MOST, where),
    _awr,
  ),
  "apa": (functools.partial(losses.apa_loss, beta=_BETA), _apa),
}


def _draw(shape=(4, 30)):
  rng = np.random.default_rng(0)
  log_prob, old = rng.normal(size=(2, *shape)) * 0.4 - 1.0
  return log_prob, old, rng.normal(size=shape), rng.random(shape) < 0.6


@pytest.mark.parametrize("name", _LOSSES)
def test_value_and_gradient_against_an_oracle(float64, name):
  loss, oracle = _LOSSES[name]
  log_prob, old, a, where = _draw()
  value, pull = jax.vjp(
    lambda x: loss(x, jnp.asarray(old), jnp.asarray(a), where=where), log_prob
  )
  expected = np.where(where, oracle(log_prob, old, a), 0.0)
  np.testing.assert_allclose(value, expected, rtol=1e-12)
  np.testing.assert_allclose(
    pull(jnp.ones_like(value))[0],
    oracles.gradient(lambda x: np.where(where, oracle(x, old, a), 0), log_prob),
    atol=1e-8,
  )


def test_cispo_weights_are_constants(float64):
  """Its gradient is −min(r, 1 + ε) A: the weight is not differentiated."""
  log_prob, old, a, where = _draw()
  arrays = map(jnp.asarray, (old, a))
  value, pull = jax.vjp(
    lambda x: losses.cispo_loss(x, *arrays, _CLIP, where=where), log_prob
  )
  weight = np.minimum(np.exp(log_prob - old), 1 + _CLIP)
  assert 0.1 < (weight == 1 + _CLIP).mean() < 0.9
  np.testing.assert_allclose(value, np.where(where, -weight * a * log_prob, 0))
  np.testing.assert_allclose(
    pull(jnp.ones_like(value))[0], np.where(where, -weight * a, 0)
  )


def test_sequence_ratio_against_an_oracle(float64):
  """The mean over each sequence's own tokens; an empty one has ratio 1."""
  log_prob, old, _, where = _draw()
  where[2] = False

  def oracle(x):
    out = np.zeros_like(x)
    for row, kept in enumerate(where):
      if kept.any():
        out[row] = (x - old)[row][kept].mean()
    return out

  value, pull = jax.vjp(
    lambda x: losses.sequence_log_prob_ratio(x, jnp.asarray(old), where),
    log_prob,
  )
  np.testing.assert_allclose(value, oracle(log_prob), rtol=1e-12)
  np.testing.assert_allclose(
    pull(jnp.ones_like(value))[0],
    oracles.gradient(oracle, log_prob),
    atol=1e-7,
  )
  assert (np.asarray(value[2]) == 0).all()


@pytest.mark.parametrize("name", [*_LOSSES, "cispo", "sequence"])
def test_nothing_under_the_mask_counts(name):
  """NaN there changes neither values nor gradients."""
  all_losses = {k: v[0] for k, v in _LOSSES.items()} | {
    "cispo": functools.partial(losses.cispo_loss, clip_high=_CLIP),
    "sequence": lambda x, old, a, where: losses.sequence_log_prob_ratio(
      x, old, where
    ),
  }
  log_prob, old, a, where = _draw()

  def run(fill):
    x, o, b = (
      jnp.asarray(np.where(where, v, fill), jnp.float32)
      for v in (log_prob, old, a)
    )
    value, pull = jax.vjp(lambda y: all_losses[name](y, o, b, where=where), x)
    return np.where(where, value, 0), pull(jnp.where(where, 1.0, 0.0))[0]

  for clean, dirty in zip(run(0.0), run(np.nan), strict=True):
    np.testing.assert_array_equal(clean, dirty)


def test_mdpo_estimates_the_reverse_divergence(float64):
  """Its mean over π_old is −E_π[A] + β KL(π ‖ π_old), gradients too."""
  rng = np.random.default_rng(1)
  logits, old_logits, a = map(jnp.asarray, rng.normal(size=(3, 6)))

  def mean_loss(z):
    old = jax.nn.log_softmax(old_logits)
    each = losses.mdpo_loss(jax.nn.log_softmax(z), old, a, _BETA)
    return jnp.sum(jnp.exp(old) * each)

  def objective(z):
    expected = jnp.sum(jax.nn.softmax(z) * a)
    return -expected + _BETA * losses.kl_divergence(z, old_logits)

  pairs = [(mean_loss, objective), (jax.grad(mean_loss), jax.grad(objective))]
  for found, expected in pairs:
    np.testing.assert_allclose(
      found(logits), expected(logits), rtol=1e-10, atol=1e-12
    )


def test_apa_is_not_convex_in_the_logits(float64):
  """LCO's squares are; that of log-probabilities has negative curvature."""
  worst = 0.0
  rng = np.random.default_rng(2)
  for _ in range(50):
    logits, old = map(jnp.asarray, rng.normal(size=(2, 3)))

    def loss(z, old=old):
      log_prob = numerics.action_log_prob(z, jnp.int32(0))
      old_log_prob = numerics.action_log_prob(old, jnp.int32(0))
      return losses.apa_loss(log_prob, old_log_prob, jnp.float64(-1.0), 1.0)

    hessian = diagnostics.logit_hessian(loss, logits)
    worst = min(worst, np.linalg.eigvalsh(np.asarray(hessian)).min())
  assert worst < -0.05


def test_weights_do_not_overflow():
  loss = losses.awr_loss(jnp.array([-1.0]), jnp.array([1e6]), 0.1, 20.0)
  np.testing.assert_allclose(loss, [20.0], rtol=1e-5)


def _cmpo(z, old, action, a):
  q = np.exp(old) * np.exp(np.clip(a, -1, 1)[..., None] * np.eye(5)[action])
  q /= q.sum(-1, keepdims=True)
  p = oracles.softmax(z)
  chosen = np.take_along_axis(p, action[..., None], -1)[..., 0]
  return 0.6 * oracles.kl(q, p) - a * np.log(chosen)


def test_cmpo_against_an_oracle(float64):
  """Value and gradient; constant arguments get none, masked entries give 0."""
  rng = np.random.default_rng(0)
  z, old = rng.normal(size=(2, 30, 5))
  action, a = rng.integers(5, size=30), 2 * rng.normal(size=30)
  where = rng.random(30) < 0.6
  assert 0.2 < (abs(a) > 1).mean() < 0.9

  def loss(z, old, a):
    return losses.cmpo_loss(z, old, jnp.asarray(action), a, 0.6, where)

  arrays = [jnp.asarray(x) for x in (z, old, a)]
  value, pull = jax.vjp(loss, *arrays)
  expected = np.where(where, _cmpo(z, old, action, a), 0.0)
  np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-12)
  gradients = pull(jnp.ones_like(value))
  np.testing.assert_allclose(
    gradients[0],
    oracles.gradient(lambda x: np.where(where, _cmpo(x, old, action, a), 0), z),
    atol=1e-8,
  )
  assert not gradients[1].any() and not gradients[2].any()
  dirty = [
    jnp.where(where.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan)
    for x in arrays
  ]
  value, pull = jax.vjp(loss, *dirty)
  np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-12)
  np.testing.assert_array_equal(pull(jnp.ones_like(value))[0], gradients[0])


def test_cmpo_is_convex_where_its_pull_outweighs_a_bad_action(float64):
  """H = (λ + A) C(π): convex for A ≥ −λ, as REINFORCE is for A ≥ 0."""
  z = jnp.array([0.5, -0.3, 0.1])
  for advantage, coefficient, convex in (
    (-0.5, 0.6, True),
    (-0.7, 0.6, False),
    (-0.5, 0.0, False),
    (2.0, 0.0, True),
  ):

    def loss(z, advantage=advantage, coefficient=coefficient):
      return losses.cmpo_loss(
        z, jnp.zeros(3), jnp.array(1), jnp.array(advantage), coefficient
      )

    smallest = np.linalg.eigvalsh(diagnostics.logit_hessian(loss, z))[0]
    assert (smallest > -1e-12) == convex


def _best_temperature(advantage, bound):
  """The dual's minimiser, by search: η ε + η log mean e^{A/η}."""

  def dual(log_temperature):
    temperature = np.exp(log_temperature)
    scores = advantage / temperature
    log_mean = scipy.special.logsumexp(scores) - np.log(len(advantage))
    return temperature * (bound + log_mean)

  found = scipy.optimize.minimize_scalar(
    dual, bounds=(-8, 8), method="bounded", options={"xatol": 1e-10}
  )
  return np.exp(found.x)


@pytest.mark.parametrize("bound", [0.01, 0.3])
def test_vmpo_weights_against_the_dual(float64, bound):
  rng = np.random.default_rng(3)
  advantage, where = rng.normal(size=(5, 8)), rng.random((5, 8)) < 0.7
  counted = advantage[where]
  median = np.sort(counted)[len(counted) // 2]
  better = counted[counted >= median]
  temperature = _best_temperature(better, bound)
  scores = np.exp(better / temperature)
  expected = len(counted) * scores / scores.sum()
  in_place = np.where(
    where & (advantage >= median),
    len(counted) * np.exp(advantage / temperature) / scores.sum(),
    0.0,
  )
  weight = np.asarray(losses.vmpo_weights(jnp.asarray(advantage), bound, where))
  np.testing.assert_allclose(weight, in_place, rtol=1e-5)
  assert len(better) == (len(counted) + 1) // 2
  np.testing.assert_allclose(weight[where].mean(), 1.0, rtol=1e-9)
  # The gain of the dual: their KL from equal weights is the bound.
  share = expected / expected.sum()
  kl = (share * np.log(share * len(share))).sum()
  np.testing.assert_allclose(kl, bound, rtol=1e-4)


def test_vmpo_weights_are_of_the_whole_batch():
  """For any division over devices, scale and offset of the advantages."""
  advantage = jnp.asarray(np.random.default_rng(0).normal(size=16), jnp.float32)
  alone = losses.vmpo_weights(advantage, 0.1)
  shared = jax.vmap(
    lambda own: losses.vmpo_weights(own, 0.1, axis_name="data"),
    axis_name="data",
  )(advantage.reshape(4, 4))
  np.testing.assert_allclose(shared.reshape(-1), alone, rtol=1e-5)
  moved = losses.vmpo_weights(100.0 * advantage - 1e3, 0.1)
  np.testing.assert_allclose(moved, alone, rtol=1e-3, atol=1e-5)


def test_vmpo_weights_of_batches_with_little_in_them():
  equal = losses.vmpo_weights(jnp.full(6, 2.0), 0.1)
  np.testing.assert_allclose(equal, 1.0, rtol=1e-5)
  nothing = losses.vmpo_weights(jnp.ones(4), 0.1, jnp.zeros(4, bool))
  np.testing.assert_array_equal(nothing, 0.0)
  one = losses.vmpo_weights(jnp.arange(4.0), 0.1, jnp.arange(4) == 2)
  np.testing.assert_allclose(one, [0.0, 0.0, 1.0, 0.0], rtol=1e-5)
  hidden = jnp.array([jnp.nan, 1.0, 2.0, 3.0])
  weight = losses.vmpo_weights(hidden, 0.1, jnp.arange(4) > 0)
  assert np.isfinite(weight).all() and weight[0] == weight[1] == 0


def test_vmpo_loss_against_an_oracle(float64):
  rng = np.random.default_rng(4)
  z, old = rng.normal(size=(2, 6, 4))
  action, weight = np.arange(6) % 4, rng.random(6)
  where = np.arange(6) != 2

  def oracle(logits):
    pi, old_pi = oracles.softmax(logits), oracles.softmax(old)
    kl = (old_pi * np.log(old_pi / pi)).sum(-1)
    each = 0.3 * kl - weight * np.log(pi[np.arange(6), action])
    return np.where(where, each, 0.0)

  value, pull = jax.vjp(
    lambda x: losses.vmpo_loss(
      x,
      jnp.asarray(old),
      jnp.asarray(action),
      jnp.asarray(weight),
      0.3,
      where,
    ),
    jnp.asarray(z),
  )
  np.testing.assert_allclose(value, oracle(z), rtol=1e-10)
  np.testing.assert_allclose(
    pull(jnp.ones(6))[0],
    oracles.gradient(lambda x: oracle(x).sum(), z),
    atol=1e-7,
  )
