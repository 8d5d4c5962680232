"""Language objectives against float64 oracles on ragged, partly empty masks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import algorithms, losses
from lco_jax.algorithms import policy_losses
from lco_jax.language import data, objectives
from lco_jax.training import update
from tests import oracles

_SHAPE = (5, 4)  # Sequences, tokens.
_VOCABULARY = 6


def _batch(dtype=np.float64, fill=0.0):
  """Ragged completions, one of them empty, one with no advantage.

  Args:
    dtype: of the numbers.
    fill: what stands under the mask.
  """
  rng = np.random.default_rng(0)
  lengths = np.array([4, 2, 0, 3, 1])
  mask = np.arange(_SHAPE[1]) < lengths[:, None]
  old_logits = rng.normal(size=(*_SHAPE, _VOCABULARY))
  action = rng.integers(0, _VOCABULARY, _SHAPE)
  advantage = rng.normal(size=_SHAPE[0])[:, None] * np.ones(_SHAPE)
  advantage[3] = 0.0  # A group whose rewards are all equal.
  old = np.log(oracles.softmax(old_logits))
  dense = advantage[..., None] * np.eye(_VOCABULARY)[action]
  reference = np.log(oracles.softmax(rng.normal(size=old_logits.shape)))

  def put(values):
    where = mask.reshape(mask.shape + (1,) * (values.ndim - 2))
    return jnp.asarray(np.where(where, values, fill).astype(dtype))

  take = lambda x: np.take_along_axis(x, action[..., None], -1)[..., 0]
  return data.TokenBatch(
    prompt=jnp.zeros((_SHAPE[0], 2), jnp.int32),
    padding=jnp.zeros(_SHAPE[0], jnp.int32),
    action=jnp.asarray(np.where(mask, action, 0), jnp.int32),
    mask=jnp.asarray(mask),
    weight=jnp.zeros(_SHAPE, dtype),
    share=jnp.zeros(_SHAPE[0], dtype),
    advantage=put(advantage),
    old_logits=put(old_logits),
    old_log_prob=put(take(old)),
    target_logits=put(old_logits + dense / 0.8),
    reference_log_prob=put(take(reference)),
    value_target=put(rng.normal(size=_SHAPE)),
  )


def _logits(dtype=np.float64):
  near = np.asarray(_batch(dtype).old_logits)
  noise = np.random.default_rng(1).normal(size=near.shape)
  return (near + 0.3 * noise).astype(dtype)


def _centred(x):
  return x - x.mean(-1, keepdims=True)


def _kl_from_clipped(pi, old_logits, one, a):
  q = oracles.softmax(old_logits + np.clip(a, -1, 1)[..., None] * one)
  return (q * np.log(q / pi)).sum(-1)


def _token_loss(name, z, batch):
  """Per-token losses [B, C], written apart from the library."""
  b = jax.tree.map(np.asarray, batch)
  pi = oracles.softmax(z)
  q = oracles.softmax(b.target_logits)
  old_pi = oracles.softmax(b.old_logits)
  one = np.eye(_VOCABULARY)[b.action]
  x = np.log((pi * one).sum(-1))
  old, a = b.old_log_prob, b.advantage
  r = np.exp(x - old)

  def clipped(ratio, low, high):
    return -np.minimum(ratio * a, np.clip(ratio, 1 - low, 1 + high) * a)

  if name == "gspo":
    count = np.maximum(b.mask.sum(-1, keepdims=True), 1)
    mean = np.where(b.mask, x - old, 0).sum(-1, keepdims=True) / count
    return clipped(np.exp(mean) * np.ones_like(x), 3e-4, 4e-4)
  residual = _centred(z) - _centred(b.target_logits)
  return {
    "lco_mse": lambda: 0.5 * (residual**2).sum(-1),
    "lco_lch": lambda: np.log(np.cosh(residual)).sum(-1),
    "lco_kld": lambda: (q * np.log(q / pi)).sum(-1),
    "reinforce": lambda: -a * x,
    "rloo": lambda: -a * x,
    "ppo": lambda: clipped(r, 0.2, 0.2),
    "grpo": lambda: clipped(r, 0.2, 0.2),
    "dr_grpo": lambda: clipped(r, 0.2, 0.2),
    "dapo": lambda: clipped(r, 0.2, 0.28),
    "mdpo": lambda: -r * a + r * np.log(r) - r + 1,
    "awr": lambda: -np.minimum(np.exp(a), 20.0) * x,
    "apa": lambda: (a - np.log(r)) ** 2,
    "vmpo": lambda: (old_pi * np.log(old_pi / pi)).sum(-1) - a * x,
    "cmpo": lambda: _kl_from_clipped(pi, b.old_logits, one, a) - a * x,
  }[name]()


def _reduced(tokens, mask, weighting):
  """The mean over a batch, sequence by sequence."""
  rows = [row[kept] for row, kept in zip(tokens, mask, strict=True)]
  rows = [row for row in rows if len(row)]
  if weighting == "token":
    return np.concatenate(rows).mean()
  if weighting == "sequence":
    return np.mean([row.mean() for row in rows])
  return sum(row.sum() for row in rows) / (len(rows) * mask.shape[1])


def _objective(name, **options):
  return objectives.make_token_objective(
    lambda params, batch: params,
    algorithms.ALGORITHMS[name].policy_loss(),
    **options,
  )


def _weighted(batch, weighting):
  # Traced, as in training: there a mask without tokens is no error.
  weight, share = jax.jit(
    lambda mask: objectives.token_weights(mask, weighting)
  )(batch.mask)
  dtype = batch.advantage.dtype
  return dataclasses.replace(
    batch, weight=weight.astype(dtype), share=share.astype(dtype)
  )


_ORACLES = [n for n in algorithms.ALGORITHMS if n != "cispo"]


@pytest.mark.parametrize("name", _ORACLES)
def test_value_and_gradient_against_an_oracle(float64, name):
  """The entropy bonus and the KL to the reference included."""
  weighting = algorithms.ALGORITHMS[name].weighting
  batch, z = _weighted(_batch(), weighting), _logits()
  objective = _objective(
    name, entropy_coefficient=0.01, reference_coefficient=0.1
  )

  def loss(logits):
    parts, _ = objective({"policy": logits}, batch)
    return parts["policy"].mean

  def oracle(logits):
    pi = oracles.softmax(logits)
    x = np.take_along_axis(np.log(pi), np.asarray(batch.action)[..., None], -1)
    d = np.asarray(batch.reference_log_prob) - x[..., 0]
    tokens = _token_loss(name, logits, batch)
    tokens = tokens + 0.1 * (np.exp(d) - d - 1)
    tokens = tokens + 0.01 * (pi * np.log(pi)).sum(-1)
    return _reduced(tokens, np.asarray(batch.mask), weighting)

  value, gradient = jax.value_and_grad(loss)(jnp.asarray(z))
  np.testing.assert_allclose(value, oracle(z), rtol=1e-8)
  np.testing.assert_allclose(gradient, oracles.gradient(oracle, z), atol=1e-7)


def test_value_loss_is_a_mean_over_tokens(float64):
  """And NaN under the mask counts neither in its value nor its gradient."""
  batch = _weighted(_batch(fill=np.nan), "token")
  values = np.random.default_rng(4).normal(size=_SHAPE)
  objective = objectives.make_token_objective(
    lambda params, batch: params,
    policy_losses.reinforce(),
    value=lambda params, batch: params,
  )
  params = {
    "policy": jnp.asarray(_logits()),
    "value": jnp.asarray(np.where(batch.mask, values, np.nan)),
  }

  def loss(params):
    return objective(params, batch)[0]["value"].mean

  def oracle(values):
    mask = np.asarray(batch.mask)
    return 0.5 * np.mean((values - np.asarray(batch.value_target))[mask] ** 2)

  value, gradient = jax.value_and_grad(loss)(params)
  np.testing.assert_allclose(value, oracle(values), rtol=1e-12)
  np.testing.assert_allclose(
    gradient["value"], oracles.gradient(oracle, values), atol=1e-7
  )
  assert (np.asarray(gradient["policy"]) == 0).all()


def test_cispo_is_reinforce_of_constant_weights(float64):
  batch, z = _weighted(_batch(), "token"), jnp.asarray(_logits())
  one = np.eye(_VOCABULARY)[np.asarray(batch.action)]
  x = np.log((oracles.softmax(np.asarray(z)) * one).sum(-1))
  weight = np.minimum(np.exp(x - np.asarray(batch.old_log_prob)), 1.28)

  def gradient(objective, batch):
    return jax.grad(
      lambda logits: objective({"policy": logits}, batch)[0]["policy"].mean
    )(z)

  weighted = dataclasses.replace(batch, advantage=batch.advantage * weight)
  np.testing.assert_allclose(
    gradient(_objective("cispo"), batch),
    gradient(_objective("reinforce"), weighted),
    atol=1e-12,
  )


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_nothing_under_the_mask_counts(name):
  """NaN there, also in the logits, changes no bit of loss or gradient."""
  weighting = algorithms.ALGORITHMS[name].weighting
  objective = _objective(
    name, entropy_coefficient=0.01, reference_coefficient=0.1
  )

  def run(fill):
    batch = _weighted(_batch(np.float32, fill), weighting)
    mask = np.asarray(batch.mask)
    logits = np.where(mask[..., None], _logits(np.float32), fill)

    def loss(z):
      parts, metrics = objective({"policy": z}, batch)
      return parts["policy"].mean, metrics

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(
      jnp.asarray(logits)
    )
    return value, metrics, gradient

  clean, dirty = run(0.0), run(np.nan)
  for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
    np.testing.assert_array_equal(a, b)
  assert (np.asarray(dirty[2])[~np.asarray(_batch(np.float32).mask)] == 0).all()


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_a_batch_without_tokens_asks_for_nothing(name):
  batch = _batch(np.float32)
  batch = dataclasses.replace(batch, mask=jnp.zeros_like(batch.mask))
  batch = _weighted(batch, algorithms.ALGORITHMS[name].weighting)
  objective = _objective(name)
  value, gradient = jax.value_and_grad(
    lambda z: objective({"policy": z}, batch)[0]["policy"].mean
  )(jnp.asarray(_logits(np.float32)))
  assert value == 0 and (np.asarray(gradient) == 0).all()


def test_kl_is_of_what_counts():
  batch = _weighted(_batch(np.float32), "token")
  logits = _logits(np.float32)
  objective = _objective("grpo", measures_kl=True)
  _, metrics = objective({"policy": logits}, batch)
  kl = losses.kl_divergence(batch.old_logits, logits)
  mask = np.asarray(batch.mask)
  np.testing.assert_allclose(
    metrics[update.KL].mean, np.asarray(kl)[mask].mean(), rtol=1e-5
  )


def test_dapo_clips_higher_than_it_clips_lower():
  """Ratios of 1.25 still pull, where PPO's range has ended."""
  assert algorithms.options_of("dapo") == algorithms.options_of("grpo")
  batch = _weighted(_batch(np.float32), "token")
  ones = jnp.ones_like(batch.advantage)
  log_prob = jax.nn.log_softmax(batch.old_logits)
  taken = jax.nn.one_hot(batch.action, _VOCABULARY, dtype=bool)
  old = jnp.sum(jnp.where(taken, log_prob, 0.0), axis=-1) - np.log(1.25)
  batch = dataclasses.replace(
    batch, advantage=ones, old_log_prob=old.astype(jnp.float32)
  )

  def pull(name):
    gradient = jax.grad(
      lambda z: _objective(name)({"policy": z}, batch)[0]["policy"].mean
    )(batch.old_logits)
    return float(jnp.max(jnp.abs(gradient)))

  assert pull("dapo") > 1e-3 and pull("grpo") == 0


@pytest.mark.parametrize("weighting", algorithms.WEIGHTINGS)
def test_weights_of_tokens(weighting):
  """Halves of a batch add up to the whole, whatever their lengths."""
  mask = np.asarray(_batch(np.float32).mask)
  tokens = np.random.default_rng(2).normal(size=mask.shape).astype(np.float32)
  weight, share = objectives.token_weights(jnp.asarray(mask), weighting)
  sums = [(weight[s] * tokens[s]).sum() for s in (slice(2), slice(2, 5))]
  shares = [share[s].sum() for s in (slice(2), slice(2, 5))]
  np.testing.assert_allclose(
    sum(sums) / sum(shares), _reduced(tokens, mask, weighting), rtol=1e-5
  )


@pytest.mark.parametrize(
  ("make", "name"),
  [
    (lambda: policy_losses.gspo(clip_low=-1.0), "clip_low"),
    (lambda: policy_losses.cispo(clip_high=float("nan")), "clip_high"),
    (lambda: policy_losses.awr(max_weight=0.0), "max_weight"),
    (lambda: policy_losses.mdpo(0.0), "divergence_coefficient"),
    (lambda: policy_losses.apa(-1.0), "divergence_coefficient"),
    (lambda: _objective("rloo", entropy_coefficient=-1.0), "entropy"),
    (
      lambda: objectives.token_weights(jnp.ones(2, bool), "x"),
      "weighting",
    ),
    (lambda: algorithms.options_of("sarsa"), "algorithm"),
    (
      lambda: objectives.token_weights(jnp.zeros(2, bool), "token"),
      "no token",
    ),
  ],
)
def test_what_cannot_be(make, name):
  with pytest.raises(ValueError, match=name):
    make()


def test_options_are_those_of_the_policy_loss():
  assert algorithms.options_of("dapo") == ("clip_low", "clip_high")
  assert algorithms.options_of("rloo") == ()
  assert set(algorithms.options_of("lco_mse")) == set(
    algorithms.options_of("lco_mse")
  )
