"""Sampled completions: against the uncached model, and as a distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from lco_jax import networks
from lco_jax.language import generation
from lco_jax.networks import transformer

_END = 1
_VOCABULARY = 12
_PADDING = np.array([0, 2, 3, 1], np.int32)
_PROMPT_LENGTH = 5
_PLAIN = generation.Sampling()


def _model(num_kv_heads=2):
  config = transformer.TransformerConfig(
    vocab_size=_VOCABULARY,
    num_layers=2,
    width=16,
    num_heads=4,
    num_kv_heads=num_kv_heads,
    mlp_width=32,
  )
  model = networks.make_language_model(config)
  prompt = jax.random.randint(
    jax.random.key(3), (4, _PROMPT_LENGTH), 2, _VOCABULARY, jnp.int32
  )
  params = jax.jit(model.init)(jax.random.key(0))
  generate = jax.jit(
    functools.partial(generation.generate, model), static_argnums=(4, 5, 6)
  )
  return model, params, prompt, generate


def _keys(count, seed=5):
  return jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize(
  ("num_kv_heads", "sampling"),
  [(4, _PLAIN), (2, generation.Sampling(0.7, 6, 0.9)), (1, _PLAIN)],
)
def test_against_the_uncached_model(num_kv_heads, sampling):
  """Logits and behaviour log-probabilities of ragged prompts, read whole."""
  model, params, prompt, generate = _model(num_kv_heads)
  done = generate(params, prompt, _PADDING, _keys(4), 6, _END, sampling)
  tokens = jnp.concatenate([prompt, done.tokens], axis=1)
  whole, _ = jax.jit(model.apply)(params, tokens, _PADDING)
  whole = whole[:, _PROMPT_LENGTH - 1 : -1]
  log_probs = jax.nn.log_softmax(generation.sampling_logits(whole, sampling))
  assert done.mask[:, 0].all() and (np.asarray(done.mask).sum(1) > 1).any()
  done, whole, log_probs = jax.device_get((done, whole, log_probs))
  for row, time in np.argwhere(done.mask):
    np.testing.assert_allclose(
      done.observed[row, time], whole[row, time], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
      done.behaviour_log_prob[row, time],
      log_probs[row, time, done.tokens[row, time]],
      rtol=1e-4,
      atol=1e-5,
    )


def test_sequences_end_at_the_end():
  """Everything after it is blank; who never ends is truncated."""
  _, params, prompt, generate = _model()
  prompt, padding = jnp.tile(prompt, (50, 1)), jnp.tile(_PADDING, 50)
  done = generate(params, prompt, padding, _keys(200), 8, _END, _PLAIN)
  done = jax.device_get(done)
  ended = 0
  for row in range(200):
    tokens = done.tokens[row]
    stops = np.flatnonzero(tokens == _END)
    length = stops[0] + 1 if len(stops) else 8
    ended += len(stops) > 0
    assert done.truncated[row] == (len(stops) == 0)
    np.testing.assert_array_equal(done.mask[row], np.arange(8) < length)
    assert (tokens[length:] == 0).all()
    assert (done.behaviour_log_prob[row, length:] == 0).all()
  assert 20 < ended < 180


def test_stops_when_all_have_ended():
  """Steps are counted by a model that ends every sequence at the third."""
  calls = []

  def read(tokens, padding, cache, start):
    jax.debug.callback(lambda at: calls.append(int(at)), jnp.asarray(start))
    token = jnp.where(start >= _PROMPT_LENGTH + 1, _END, 4)
    logits = 50.0 * jax.nn.one_hot(token, _VOCABULARY)
    return jnp.broadcast_to(logits, (*tokens.shape, _VOCABULARY)), cache

  _, _, prompt, _ = _model()
  model = networks.LanguageModel(
    init=None,
    hidden=None,
    head=lambda params, outputs: outputs,
    apply=None,
    empty_cache=None,
    reader=lambda *_: (read, ()),
    vocab_size=_VOCABULARY,
  )
  done = jax.jit(
    lambda: generation.generate(
      model,
      {},
      prompt,
      _PADDING,
      _keys(4),
      100,
      _END,
      _PLAIN,
    )
  )()
  jax.block_until_ready(done)
  jax.effects_barrier()
  np.testing.assert_array_equal(done.tokens[0, :4], [4, 4, _END, 0])
  assert calls == [0, _PROMPT_LENGTH, _PROMPT_LENGTH + 1]


def test_a_sequence_does_not_depend_on_its_neighbours():
  _, params, prompt, generate = _model()
  together = generate(params, prompt, _PADDING, _keys(4), 6, _END, _PLAIN)
  for row in range(4):
    own = slice(row, row + 1)
    alone = generate(
      params, prompt[own], _PADDING[own], _keys(4)[own], 6, _END, _PLAIN
    )
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])


@pytest.mark.parametrize(
  "sampling",
  [
    _PLAIN,
    generation.Sampling(temperature=0.5),
    generation.Sampling(top_k=4),
    generation.Sampling(top_p=0.7),
    generation.Sampling(temperature=1.5, top_k=6, top_p=0.8),
  ],
)
def test_frequencies_are_the_behaviour_probabilities(sampling):
  """χ² over 100,000 samples, and nothing outside the cuts."""
  count = 100_000
  logits = jnp.array([0.3, -1.0, 2.0, 1.2, 1.2, -0.5, 0.0, -3.0])
  uniform = jax.random.uniform(jax.random.key(8), (count,))
  rows = jnp.broadcast_to(logits, (count, 8))
  token, log_prob = generation.sample_token(rows, uniform, sampling)
  observed = np.bincount(token, minlength=8)
  expected = np.zeros(8)
  expected[np.asarray(token)] = np.exp(np.asarray(log_prob, np.float64))
  np.testing.assert_allclose(expected.sum(), 1, atol=1e-5)
  kept = expected > 0
  assert observed[~kept].sum() == 0
  result = scipy.stats.chisquare(
    observed[kept], count * expected[kept] / expected.sum()
  )
  assert result.pvalue > 1e-3


def test_cuts_keep_what_they_should():
  logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))

  def kept(**cuts):
    return np.isfinite(
      generation.sampling_logits(logits, generation.Sampling(**cuts))
    ).tolist()

  assert kept(top_k=2) == [True, True, False, False]
  assert kept(top_k=9) == [True] * 4
  assert kept(top_p=0.39) == [True, False, False, False]
  assert kept(top_p=0.6) == [True, True, False, False]
  assert kept(top_p=1.0) == [True] * 4
  # What is left of it after top_k, renormalised, is what top_p counts.
  assert kept(top_k=3, top_p=0.75) == [True, True, False, False]


def test_extreme_draws_take_possible_tokens():
  logits = jnp.array([[-jnp.inf, 0.0, 1.0, -jnp.inf]] * 2)
  uniform = jnp.array([0.0, np.nextafter(np.float32(1), np.float32(0))])
  token, _ = generation.sample_token(logits, uniform, _PLAIN)
  np.testing.assert_array_equal(token, [1, 2])


def test_rounded_sums_end_at_a_possible_token():
  """Probabilities of 1,000 tokens may add up to less than the largest draw."""
  logits = jax.random.normal(jax.random.key(0), (200, 1000))
  logits = logits.at[:, 0].set(-jnp.inf)
  largest = np.nextafter(np.float32(1), np.float32(0))
  total = jnp.cumsum(jax.nn.softmax(logits), axis=-1)[:, -1]
  assert (total < largest).any()
  token, _ = generation.sample_token(logits, jnp.full(200, largest), _PLAIN)
  assert (np.asarray(token) > 900).all()


def test_temperature_zero_is_greedy():
  logits = jnp.array([[0.1, 3.0, -1.0]])
  token, log_prob = generation.sample_token(
    logits, jnp.array([0.99]), generation.Sampling(temperature=0.0)
  )
  assert token[0] == 1 and log_prob[0] == 0


@pytest.mark.parametrize(
  ("options", "name"),
  [
    ({"temperature": -1.0}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"top_k": -1}, "top_k"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
  ],
)
def test_distributions_that_cannot_be(options, name):
  with pytest.raises(ValueError, match=name):
    generation.Sampling(**options)


@pytest.mark.parametrize("length", [1, 3])
def test_completions_of_a_prompt_are_as_if_it_was_read_for_each(length):
  model, params, prompt, _ = _model()
  completion = jax.random.randint(
    jax.random.key(4), (8, length), 2, _VOCABULARY, jnp.int32
  )
  read = jax.jit(functools.partial(generation.completion_hidden, model))
  together = read(params, prompt, _PADDING, completion)
  apart = read(
    params, jnp.tile(prompt, (2, 1)), np.tile(_PADDING, 2), completion
  )
  assert together.shape == (8, length, 16)
  np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-5)


def _compilations(caplog):
  return sum("Finished XLA compilation" in m for m in caplog.messages)


def test_generation_compiles_once_per_shape(caplog):
  """Other weights, prompts, paddings and keys need no other program."""
  model, params, prompt, generate = _model()
  other = model.init(jax.random.key(9))
  run = jax.jit(
    lambda p, asked, padding, keys: generate(
      p, asked, padding, keys, 6, _END, _PLAIN
    )
  )
  arguments = [
    (params, prompt, jnp.asarray(_PADDING), _keys(8)),
    (other, prompt[::-1], jnp.asarray(_PADDING[::-1]), _keys(8, seed=6)),
    (params, prompt + 0, jnp.zeros(4, jnp.int32), _keys(8, seed=7)),
  ]
  caplog.set_level("WARNING")
  with jax.log_compiles():
    for index, own in enumerate(arguments):
      caplog.clear()
      jax.block_until_ready(run(*own))
      assert _compilations(caplog) == (index == 0)
    caplog.clear()
    run(params, prompt[:2], jnp.zeros(2, jnp.int32), _keys(8))
    assert _compilations(caplog) >= 1


def test_samples_of_a_prompt_are_as_if_it_was_read_for_each():
  """Prompts are read once; the caches of their samples are copies."""
  _, params, prompt, generate = _model()
  keys = _keys(12)
  shared = generate(params, prompt, _PADDING, keys, 6, _END, _PLAIN)
  apart = generate(
    params,
    jnp.tile(prompt, (3, 1)),
    jnp.tile(_PADDING, 3),
    keys,
    6,
    _END,
    _PLAIN,
  )
  np.testing.assert_array_equal(shared.tokens, apart.tokens)
  np.testing.assert_allclose(shared.observed, apart.observed, atol=1e-6)
  with pytest.raises(ValueError, match="11 keys"):
    generate(params, prompt, _PADDING, keys[:11], 6, _END, _PLAIN)
