"""Completions read chunk by chunk equal those read whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import networks
from lco_jax.language import data, reading
from tests import completions

_SAMPLES, _PROMPTS, _PROMPT_LENGTH, _LENGTH, _VOCABULARY = 3, 2, 4, 5, 29


@pytest.fixture(scope="module")
def read():
  """A model, its parameters, completions, and log-probabilities of tokens."""
  model = networks.make_language_model(
    networks.TransformerConfig(
      vocab_size=_VOCABULARY,
      num_layers=1,
      width=16,
      num_heads=2,
      num_kv_heads=1,
      mlp_width=16,
    )
  )
  params = jax.jit(model.init)(jax.random.key(0))
  params = jax.tree.map(lambda leaf: 2.0 * leaf, params)
  rng = np.random.default_rng(0)
  shape = (_SAMPLES, _PROMPTS)
  prompt = rng.integers(0, _VOCABULARY, (_PROMPTS, _PROMPT_LENGTH))
  prompt = np.broadcast_to(prompt, (*shape, _PROMPT_LENGTH)).astype(np.int32)
  action = rng.integers(0, _VOCABULARY, (*shape, _LENGTH)).astype(np.int32)
  padding = np.broadcast_to([0, 1], shape).astype(np.int32)
  logits = completions.read_logits(model, params, prompt, padding, action)
  blank = jnp.zeros(shape, bool)
  samples = data.Samples(
    prompt=jnp.asarray(prompt),
    padding=jnp.asarray(padding),
    action=jnp.asarray(action),
    mask=jnp.ones(action.shape, bool),
    hidden=None,
    log_prob=None,
    reward=None,
    correct=blank,
    truncated=blank,
  )
  return model, params, samples, np.asarray(jax.nn.log_softmax(logits))


@pytest.mark.parametrize("chunk", [0, 7, 100])
def test_log_probs_of_the_tokens(read, chunk):
  """And their gradient, whose chunks are computed again."""
  model, params, samples, log_probs = read

  def total(params, chunk):
    found = reading.read_log_prob(model, params, samples, chunk)
    return jnp.sum(jnp.sin(found)), found

  gradient, found = jax.jit(jax.grad(total, has_aux=True), static_argnums=1)(
    params, chunk
  )
  expected = np.take_along_axis(
    log_probs, np.asarray(samples.action)[..., None], -1
  )[..., 0]
  np.testing.assert_allclose(found, expected, atol=1e-5)
  whole, _ = jax.jit(jax.grad(total, has_aux=True), static_argnums=1)(params, 0)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    gradient,
    whole,
  )


@pytest.mark.parametrize("chunk", [0, 7])
def test_log_probs_of_some_tokens(read, chunk):
  model, params, samples, log_probs = read
  known = np.random.default_rng(1).integers(
    0, _VOCABULARY, (*samples.action.shape, 3)
  )
  known_tokens = jnp.asarray(known, jnp.int32)
  found = jax.jit(
    lambda p: reading.read_known_log_probs(
      model, p, samples, known_tokens, chunk
    )
  )(params)
  expected = np.take_along_axis(log_probs, known, -1)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("chunk", [0, 7])
def test_the_likeliest_tokens(read, chunk):
  model, params, samples, log_probs = read

  @jax.jit
  def find(params):
    hidden = reading.read_hidden(model, params, samples)
    own = dataclasses.replace(samples, hidden=hidden)
    return reading.find_likely_tokens(model, params, own, 4, chunk)

  found = find(params)
  np.testing.assert_array_equal(found.tokens[..., 0], samples.action)
  order = np.argsort(-log_probs, axis=-1)[..., :4]
  np.testing.assert_array_equal(found.tokens[..., 1:], order)
  np.testing.assert_allclose(
    found.log_prob,
    np.take_along_axis(log_probs, np.asarray(found.tokens), -1),
    atol=1e-5,
  )


def test_a_chunk_takes_some_megabytes():
  vocabulary = 49_152
  assert reading.resolve_chunk(None, vocabulary) * vocabulary * 4 <= 2**25
  assert reading.resolve_chunk(None, 2**30) == 1
  assert reading.resolve_chunk(0, 8) == 0
