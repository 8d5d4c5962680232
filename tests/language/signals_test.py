"""Advantage signals against enumeration and float64 loops."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import advantages, networks
from lco_jax.language import data, reading, signals
from lco_jax.training import placement

# Flax mixes ranks.
pytestmark = pytest.mark.third_party

_VOCABULARY, _LENGTH = 4, 3
_END = 1


def _model():
  model = networks.make_language_model(
    networks.TransformerConfig(
      vocab_size=_VOCABULARY,
      num_layers=1,
      width=8,
      num_heads=2,
      num_kv_heads=1,
      mlp_width=8,
    )
  )
  compiled = {
    name: jax.jit(getattr(model, name))
    for name in ("init", "hidden", "head", "apply")
  }
  return dataclasses.replace(model, **compiled)


def _samples(params, model, answer=(2, 3, _END)):
  """Every completion of one prompt of two tokens, as samples [G, 1]."""
  every = []
  for tokens in itertools.product(range(1, _VOCABULARY), repeat=_LENGTH):
    length = tokens.index(_END) + 1 if _END in tokens else _LENGTH
    every.append(tokens[:length] + (0,) * (_LENGTH - length))
  every = np.array(sorted(set(every)), np.int32)[:, None]
  mask = (np.cumsum(every == _END, -1) - (every == _END)) == 0
  count = len(every)
  prompt = jnp.broadcast_to(jnp.array([3, 2], jnp.int32), (count, 1, 2))
  padding = jnp.zeros((count, 1), jnp.int32)
  tokens = jnp.concatenate([prompt, jnp.asarray(every)], axis=-1)
  hidden, _ = model.hidden(params, tokens[:, 0], padding[:, 0])
  hidden = hidden[:, None, 1:-1]
  every_log_prob = jax.nn.log_softmax(model.head(params, hidden))
  log_prob = jnp.take_along_axis(every_log_prob, every[..., None], -1)[..., 0]
  correct = (every == np.array(answer)).all(-1)
  return data.Samples(
    prompt=prompt,
    padding=padding,
    action=jnp.asarray(every),
    mask=jnp.asarray(mask),
    answer=jnp.broadcast_to(jnp.array(answer, jnp.int32), every.shape),
    hidden=hidden,
    log_prob=jnp.where(mask, log_prob, 0.0),
    reward=jnp.asarray(correct, jnp.float32),
    correct=jnp.asarray(correct),
    truncated=jnp.zeros((count, 1), bool),
  )


def _dense(signal):
  """A signal's advantages of all tokens, float[G, N, C, V]."""
  shape = (*signal.rest_advantage.shape, _VOCABULARY)
  dense = np.broadcast_to(signal.rest_advantage[..., None], shape).copy()
  for place in np.ndindex(signal.known.shape):
    dense[(*place[:3], signal.known[place])] = signal.known_advantage[place]
  return dense


def _exact_signal(model, params, samples):
  run = jax.jit(lambda p, s: signals.exact_signal(model, p, s))
  return jax.device_get(run(params, samples))


def _logits(model, params, samples):
  """Of the model's next tokens, read without a cache: [G, 1, C, V]."""
  tokens = jnp.concatenate([samples.prompt, samples.action], axis=-1)[:, 0]
  logits, _ = model.apply(params, tokens, samples.padding[:, 0])
  return logits[:, None, 1:-1]


def _made(seed=0):
  model = _model()
  params = model.init(jax.random.key(seed))
  # Larger logits: probabilities that differ.
  params = jax.tree.map(lambda x: 3.0 * x, params)
  return model, params, _samples(params, model)


@pytest.mark.parametrize("answer", [(2, 3, _END), (3, _END, 0), (_END, 0, 0)])
def test_exact_advantages_against_enumeration(answer):
  """Q(s, a): expected reward over all completions that begin with s and a.

  Token 0 is never an answer's, so that leaving it out of the enumeration
  changes no expectation.
  """
  model, params, _ = _made()
  samples = _samples(params, model, answer)
  signal = _exact_signal(model, params, samples)
  dense, value = _dense(signal), signal.value
  logits = _logits(model, params, samples)
  log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)[:, 0]
  tokens, mask = (
    np.asarray(samples.action)[:, 0],
    np.asarray(samples.mask)[:, 0],
  )
  reward = np.asarray(samples.reward)[:, 0]

  def expected(prefix):
    """Of the reward, after a prefix."""
    total = 0.0
    for row in range(len(tokens)):
      if tuple(tokens[row, : len(prefix)]) == prefix and reward[row]:
        later = range(len(prefix), int(mask[row].sum()))
        total += np.exp(sum(log_probs[row, t, tokens[row, t]] for t in later))
    return total

  checked = 0
  for row, time in np.argwhere(mask):
    prefix = tuple(tokens[row, :time])
    before = expected(prefix)
    np.testing.assert_allclose(value[row, 0, time], before, atol=1e-6)
    for action in range(1, _VOCABULARY):
      after = expected((*prefix, action))
      np.testing.assert_allclose(
        dense[row, 0, time, action], after - before, atol=1e-6
      )
      checked += after > 0
  assert checked > 0
  for found in (value[:, 0], dense[:, 0].any(-1)):
    np.testing.assert_array_equal(np.where(mask, 0, found), 0)


def test_exact_advantages_have_mean_zero_under_the_policy():
  model, params, samples = _made()
  dense = _dense(_exact_signal(model, params, samples))
  probs = jax.nn.softmax(_logits(model, params, samples))
  mean = jnp.sum(probs * dense, axis=-1)
  np.testing.assert_allclose(jnp.where(samples.mask, mean, 0), 0, atol=1e-6)


def test_an_oracle_has_no_error_and_rewards_have():
  model, params, samples = _made()
  parts = {"policy": params}

  @jax.jit
  @placement.bind_device_axis
  def errors(parts, samples):
    truth = signals.exact_signal(model, parts["policy"], samples)
    return [
      signals.compare_signals(
        signals.make_signal(name, model)(parts, samples), truth, samples
      )
      for name in ("oracle", "group_centred")
    ]

  oracle, sampled = errors(parts, samples)
  assert oracle["advantage_rms_error"] == 0
  np.testing.assert_allclose(oracle["advantage_correlation"], 1, atol=1e-5)
  assert sampled["advantage_rms_error"] > 0.05
  assert 0 < sampled["advantage_correlation"] < 0.99


def test_learned_advantages_against_a_loop(float64):
  """GAE over tokens of ragged completions, the reward at their end."""
  rng = np.random.default_rng(0)
  lengths = np.array([[3, 1], [2, 4], [4, 4]])
  mask = np.arange(4) < lengths[..., None]
  values, reward = rng.normal(size=mask.shape), rng.normal(size=lengths.shape)
  discount, lambda_ = 0.9, 0.7
  expected = np.zeros(mask.shape)
  for g, n in np.ndindex(*lengths.shape):
    following, length = 0.0, lengths[g, n]
    for t in reversed(range(length)):
      ends = t == length - 1
      delta = (reward[g, n] if ends else discount * values[g, n, t + 1]) - (
        values[g, n, t]
      )
      following = delta + (0.0 if ends else discount * lambda_ * following)
      expected[g, n, t] = following
  mean = expected[mask].mean()
  std = np.sqrt(expected[mask].var() + 1e-8)
  samples = data.Samples(
    prompt=None,
    padding=None,
    action=jnp.zeros(mask.shape, jnp.int32),
    mask=jnp.asarray(mask),
    hidden=None,
    log_prob=None,
    reward=jnp.asarray(reward),
    correct=None,
    truncated=None,
  )
  dirty = jnp.asarray(np.where(mask, values, np.nan))
  # Not compiled: XLA turns the product of a mask and a NaN into 0.
  found = placement.bind_device_axis(
    lambda samples, values: signals.generalized_advantages(
      samples, values, discount, lambda_
    )
  )(samples, dirty)
  np.testing.assert_allclose(
    found.advantage, np.where(mask, (expected - mean) / std, 0), atol=1e-10
  )
  np.testing.assert_allclose(
    found.value_target, np.where(mask, expected + values, 0), atol=1e-10
  )


@pytest.mark.parametrize("name", ["verifier", "preference"])
@pytest.mark.parametrize("chunk", [0, 7])
def test_a_verifier_is_asked_about_likely_tokens(name, chunk):
  """Standardised among the known ones, mean zero with the others."""
  model, params, samples = _made()
  better = model.init(jax.random.key(7))
  parts = {"policy": params, "verifier": better, "verifier_reference": params}
  estimate = signals.make_signal(name, model, num_known=2, chunk_tokens=chunk)
  found = jax.device_get(jax.jit(estimate)(parts, samples))
  dense = _dense(found)
  own = _logits(model, params, samples)
  scores = np.asarray(jax.nn.log_softmax(_logits(model, better, samples)))
  if name == "preference":
    scores = scores - np.asarray(jax.nn.log_softmax(own))
  probs = np.asarray(jax.nn.softmax(own))
  sizes = set()
  for g, t in np.argwhere(np.asarray(samples.mask)[:, 0]):
    p, s = probs[g, 0, t], scores[g, 0, t]
    chosen = int(samples.action[g, 0, t])
    k = np.zeros(_VOCABULARY, bool)
    k[[chosen, *np.argsort(-p)[:2]]] = True
    sizes.add(int(k.sum()))
    np.testing.assert_array_equal(
      np.unique(found.known[g, 0, t]), np.flatnonzero(k)
    )
    standard = (s[k] - s[k].mean()) / max(s[k].std(ddof=1), 1e-3)
    kept = standard * (1 - p[k])
    row = np.full(_VOCABULARY, -(p[k] * kept).sum() / max(1 - p[k].sum(), 0.1))
    row[k] = kept
    np.testing.assert_allclose(dense[g, 0, t], row, atol=2e-4)
    assert found.advantage[g, 0, t] == dense[g, 0, t, chosen]
  assert sizes == {2, 3}  # The sampled one is among the likeliest, or not.


def test_where_policy_and_verifier_agree():
  """Both must be all but sure of the sampled token, under the mask."""
  model, params, samples = _made()
  likely = reading.find_likely_tokens(model, params, samples, 1, 0)
  sure = jnp.arange(_LENGTH) % 2 == 0
  sure = jnp.broadcast_to(sure, samples.mask.shape)
  log_prob = jnp.array([-0.01, -0.01, -0.03])
  own = dataclasses.replace(
    samples, log_prob=jnp.broadcast_to(log_prob, samples.mask.shape)
  )
  blank = jnp.zeros_like(likely.log_prob)
  found = signals.complete_scores(own, likely, blank, sure)
  expected = np.asarray(samples.mask) & (np.arange(_LENGTH) == 0)
  np.testing.assert_array_equal(found.agreed, expected)


def test_nan_among_unknown_scores_counts_nowhere():
  scores = jnp.array([1.0, jnp.nan, 3.0, jnp.nan])
  known = jnp.array([True, False, True, False])
  standard = advantages.standardized(scores, known)
  half = np.sqrt(0.5)
  np.testing.assert_allclose(standard, [-half, 0, half, 0], atol=1e-6)
  one = advantages.standardized(scores, jnp.array([True, False, False, False]))
  np.testing.assert_array_equal(one, 0)
  gradient = jax.grad(
    lambda s: jnp.sum(advantages.standardized(s, known) ** 3)
  )(scores)
  assert np.isfinite(gradient).all()


def test_what_cannot_be():
  with pytest.raises(ValueError, match="advantage: unknown 'nope'"):
    signals.make_signal("nope", _model())
  with pytest.raises(ValueError, match="value_model"):
    signals.make_signal("learned", _model())
