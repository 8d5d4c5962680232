"""Signals of a few tokens say what those of all tokens say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import networks
from lco_jax.language import (
  between,
  data,
  lean_objectives,
  lean_signals,
  signals,
)
from lco_jax.training import placement

_SAMPLES, _PROMPTS, _PROMPT_LENGTH, _LENGTH, _VOCABULARY = 3, 2, 4, 5, 29
_KNOWN = 4


@pytest.fixture(scope="module")
def asked():
  """A model, three policies, and completions by the first of them."""
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
  params = {
    name: jax.tree.map(
      lambda leaf: 2.0 * leaf, jax.jit(model.init)(jax.random.key(seed))
    )
    for seed, name in enumerate(["policy", "verifier", "verifier_reference"])
  }
  rng = np.random.default_rng(0)
  shape = (_SAMPLES, _PROMPTS)
  prompt = rng.integers(0, _VOCABULARY, (_PROMPTS, _PROMPT_LENGTH))
  prompt = np.broadcast_to(prompt, (*shape, _PROMPT_LENGTH)).astype(np.int32)
  action = rng.integers(0, _VOCABULARY, (*shape, _LENGTH)).astype(np.int32)
  padding = np.broadcast_to([0, 1], shape).astype(np.int32)
  mask = np.arange(_LENGTH) < rng.integers(1, _LENGTH + 1, (*shape, 1))
  tokens = np.concatenate([prompt, action[..., :-1]], axis=-1)
  hidden, _ = jax.jit(model.hidden)(
    params["policy"],
    tokens.reshape(-1, tokens.shape[-1]),
    padding.reshape(-1),
  )
  hidden = hidden[:, _PROMPT_LENGTH - 1 :].reshape(*shape, _LENGTH, -1)
  logits = model.head(params["policy"], hidden)
  log_probs = jax.nn.log_softmax(logits)
  chosen = jnp.take_along_axis(log_probs, action[..., None], axis=-1)[..., 0]
  reward = jnp.asarray(rng.random(shape), jnp.float32)
  blank = jnp.zeros(shape, bool)
  texts = data.TextSamples(
    prompt=jnp.asarray(prompt),
    padding=jnp.asarray(padding),
    action=jnp.asarray(action),
    mask=jnp.asarray(mask),
    hidden=hidden,
    log_prob=jnp.where(mask, chosen, 0.0),
    reward=reward,
    correct=blank,
    truncated=blank,
    failed=blank,
    first_visit=~blank,
  )
  samples = data.Samples(
    prompt=texts.prompt,
    padding=texts.padding,
    action=texts.action,
    mask=texts.mask,
    answer=texts.action,
    logits=logits,
    reward=reward,
    correct=blank,
    truncated=blank,
  )
  return model, params, texts, samples


@pytest.mark.parametrize("name", ["verifier", "preference", "group_relative"])
@pytest.mark.parametrize("chunk", [0, 7])
def test_equals_the_dense_signal(asked, name, chunk):
  model, params, texts, samples = asked
  expected = signals.make(name, model, num_known=_KNOWN)(params, samples)
  found = jax.jit(
    lambda params, texts: lean_signals.estimate(
      name, model, model, params, texts, _KNOWN, chunk
    )
  )(params, texts)
  np.testing.assert_allclose(
    found.advantage, expected.advantage, rtol=1e-4, atol=1e-5
  )
  one = jnp.ones_like(texts.log_prob)
  batch = data.LeanBatch(
    prompt=texts.prompt,
    padding=texts.padding,
    action=texts.action,
    mask=texts.mask,
    sampled=texts.mask,
    weight=one,
    share=one[..., 0],
    advantage=found.advantage,
    old_log_prob=texts.log_prob,
    reference_log_prob=texts.log_prob,
    old_hidden=texts.hidden,
    beta=one,
    known=found.known,
    known_advantage=found.known_advantage,
    rest_advantage=found.rest_advantage,
  )
  dense = lean_objectives.token_batch(batch, samples.logits)
  np.testing.assert_allclose(
    dense.target_logits - samples.logits, expected.dense, rtol=1e-3, atol=1e-4
  )
  # Some sampled tokens are among the likeliest, some are not.
  again = (found.known[..., 1:] == found.known[..., :1]).any(axis=-1)
  assert name == "group_relative" or (again.any() and not again.all())


def test_what_prompts_earn_comes_beside_what_samples_do(asked):
  model, params, texts, _ = asked

  def estimate(texts, weight, name="group_relative"):
    return lean_signals.estimate(
      name, model, model, params, texts, _KNOWN, 0, weight
    )

  own = estimate(texts, None)
  some = placement.bind_device_axis(estimate)(texts, jnp.float32(0.5))
  prompts = placement.bind_device_axis(between.standardized)(texts.reward)
  expected = np.where(texts.mask, own.advantage + 0.5 * prompts[..., None], 0.0)
  assert np.abs(prompts).min() > 0.1
  np.testing.assert_allclose(some.advantage, expected, atol=1e-5)
  np.testing.assert_allclose(some.known_advantage[..., 0], expected, atol=1e-5)
  # Advantages that compare prompts already take none of it.
  np.testing.assert_array_equal(
    estimate(texts, jnp.float32(0.5), "reward").advantage,
    estimate(texts, None, "reward").advantage,
  )


def test_where_policy_and_verifier_agree(asked):
  """Both must be all but sure of the sampled token, under the mask."""
  model, params, texts, _ = asked
  likeliest = lean_objectives.likeliest(model, params["policy"], texts, 1, 0)
  blank = jnp.zeros_like(likeliest.log_prob)
  sure = jnp.arange(_LENGTH) % 2 == 0
  sure = jnp.broadcast_to(sure, texts.mask.shape)
  own = dataclasses.replace(
    texts,
    log_prob=jnp.where(jnp.arange(_LENGTH) < 3, -0.01, -0.03)[None, None]
    + 0.0 * texts.log_prob,
  )
  found = lean_signals.of_known(own, likeliest.tokens, blank, blank, sure)
  expected = np.asarray(texts.mask) & np.isin(np.arange(_LENGTH), [0, 2])
  np.testing.assert_array_equal(found.agreed, expected)
