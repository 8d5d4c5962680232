"""What the training of a large model makes of signals and settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import algorithms, networks
from lco_jax.language import between, data, lean_signals, llm
from lco_jax.training import optimizers, placement

_SAMPLES, _PROMPTS, _LENGTH, _VOCABULARY, _WIDTH = 4, 3, 5, 11, 8


def _model():
  return networks.make_language_model(
    networks.TransformerConfig(
      vocab_size=_VOCABULARY,
      num_layers=1,
      width=_WIDTH,
      num_heads=2,
      num_kv_heads=1,
      mlp_width=16,
    )
  )


def _training(algorithm="lco_mse", **options):
  row = algorithms.ALGORITHMS[algorithm]
  return llm.make_training(
    _model(),
    row,
    row.policy_loss(),
    optimizers.make_optimizer("sgd", lambda count: 1.0, None),
    num_prompts=_PROMPTS,
    num_samples=_SAMPLES,
    completion_length=_LENGTH,
    **options,
  )


def _samples(num_samples=_SAMPLES, num_prompts=_PROMPTS):
  """Completions of any tokens; of some prompts more of them are right."""
  rng = np.random.default_rng(0)
  shape = (num_samples, num_prompts)
  reward = 1.0 * (np.arange(num_samples)[:, None] <= np.arange(num_prompts))
  mask = np.arange(_LENGTH) < rng.integers(2, _LENGTH + 1, (*shape, 1))
  blank = np.zeros(shape, bool)
  tokens = rng.integers(0, _VOCABULARY, (*shape, _LENGTH)).astype(np.int32)
  samples = data.TextSamples(
    prompt=tokens[..., :2],
    padding=np.zeros(shape, np.int32),
    action=tokens,
    mask=mask,
    hidden=np.zeros((*shape, _LENGTH, _WIDTH), np.float32),
    log_prob=np.zeros((*shape, _LENGTH), np.float32),
    reward=reward.astype(np.float32),
    correct=reward >= 1,
    truncated=blank,
    failed=blank,
    first_visit=~blank,
  )
  return jax.tree.map(jnp.asarray, samples)


def _prepared(training, samples, completed=0):
  prepare = placement.bind_device_axis(training.prepare)
  return prepare({"policy": {}}, samples, jnp.int32(completed))[0]


def test_prompts_count_beside_each_other_for_a_while():
  samples = _samples()
  some = _training(between=between.Between(0.5, begin=1, end=2))
  none = _prepared(_training(), samples)
  prompts = placement.bind_device_axis(between.standardized)(samples.reward)
  assert np.abs(prompts).max() > 0.1
  for completed, weight in ((0, 0.0), (1, 0.5), (2, 0.0)):
    found = _prepared(some, samples, completed)
    more = np.where(samples.mask, weight * prompts[..., None], 0.0)
    np.testing.assert_allclose(
      found.advantage, none.advantage + more, atol=1e-5
    )


def test_beta_is_multiplied_where_it_is_told_to(monkeypatch):
  """Below or at 0, and where policy and verifier agree; twice where both."""
  samples = _samples()
  agreed = samples.mask & (samples.action % 2 == 0)
  estimate = lean_signals.estimate
  monkeypatch.setattr(
    lean_signals,
    "estimate",
    lambda *arguments: estimate(*arguments)._replace(agreed=agreed),
  )
  training = _training(
    beta=2.0, nonpositive_beta_multiple=3.0, agreement_beta_multiple=5.0
  )
  found = _prepared(training, samples)
  expected = 2.0 * np.where(found.advantage > 0, 1.0, 3.0)
  expected *= np.where(agreed, 5.0, 1.0)
  np.testing.assert_allclose(found.beta, expected)
  assert set(np.unique(found.beta)) == {2.0, 6.0, 10.0, 30.0}


@pytest.mark.parametrize(
  ("given", "looked_at"),
  [((8, 3), (2, 3)), ((5, 4), (2, 3)), ((2, 6), (1, 3)), ((1, 8), (1, 2))],
)
def test_a_quarter_of_completions_is_looked_at_afterwards(given, looked_at):
  training, samples = _training(), _samples(*given)
  params = {"policy": _model().init(jax.random.key(0))}
  batch = _prepared(training, samples)

  def kl(unknown):
    """With old states that are not known of the completions [G, N]."""
    old = jnp.where(unknown[..., None, None], jnp.nan, batch.old_hidden)
    told = placement.bind_device_axis(training.assess)(
      params, params, dataclasses.replace(batch, old_hidden=old)
    )
    return told["kl_old_new"]

  samples, prompts = looked_at
  unknown = np.ones(given, bool)
  unknown[:samples, :prompts] = False
  assert np.isfinite(kl(unknown))
  unknown[samples - 1, prompts - 1] = True
  assert np.isnan(kl(unknown))


def test_an_algorithms_own_advantage_may_not_be_had():
  with pytest.raises(ValueError, match="'learned', which the algorithm takes"):
    _training("ppo")
  with pytest.raises(ValueError, match="'learned' is not among"):
    _training(advantage="learned")
