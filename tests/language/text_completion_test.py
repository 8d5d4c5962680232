"""A prompt is read once for all of its completions, whatever else is."""

import jax
import numpy as np
import pytest

from lco_jax import networks
from lco_jax.language import generation, text_completion

_VOCABULARY, _LENGTH = 13, 4


@pytest.fixture(scope="module")
def model():
  return networks.make_language_model(
    networks.TransformerConfig(
      vocab_size=_VOCABULARY,
      num_layers=2,
      width=16,
      num_heads=2,
      num_kv_heads=1,
      mlp_width=16,
    )
  )


@pytest.fixture(scope="module")
def params(model):
  return jax.jit(model.init)(jax.random.key(0))


def _some(rng, least, most):
  """Tokens of a text."""
  return rng.integers(1, _VOCABULARY, rng.integers(least, most + 1)).tolist()


@pytest.mark.parametrize("batch_size", [1, 6, 64])
def test_answers_are_as_likely_as_in_texts_of_their_own(
  model, params, batch_size
):
  completer = text_completion.Completer(model, (0,), _LENGTH, batch_size)
  rng = np.random.default_rng(0)
  prompts = [_some(rng, 2, 20) for _ in range(5)]
  answers = [[_some(rng, 1, _LENGTH) for _ in prompts] for _ in range(3)]
  found, mask = completer.log_probs(params, prompts, answers)
  assert found.shape == mask.shape == (3, 5, _LENGTH)
  for sample, prompt in np.ndindex(3, 5):
    own = answers[sample][prompt]
    (reading,) = completer.read(params, [prompts[prompt] + own], top_k=1)
    np.testing.assert_allclose(
      found[sample, prompt, : len(own)],
      -reading.token_nll[-len(own) :],
      atol=1e-5,
    )
    assert not found[sample, prompt, len(own) :].any()
    assert mask[sample, prompt].tolist() == [True] * len(own) + [False] * (
      _LENGTH - len(own)
    )


@pytest.mark.parametrize("batch_size", [1, 6, 64])
def test_a_completion_is_its_key_s(model, params, batch_size):
  """However many others are sampled beside it."""
  rng = np.random.default_rng(1)
  prompts = [_some(rng, 2, 20) for _ in range(5)]
  keys = jax.random.split(jax.random.key(1), (3, 5))
  completer = text_completion.Completer(model, (0, 1), _LENGTH, batch_size)
  sampling = generation.Sampling()
  found = completer.complete(params, prompts, keys, sampling)
  for sample, prompt in np.ndindex(3, 5):
    ((alone,),) = completer.complete(
      params,
      [prompts[prompt]],
      keys[sample : sample + 1, prompt : prompt + 1],
      sampling,
    )
    assert found[sample][prompt] == alone
  lengths = {len(own) for completions in found for own in completions}
  assert max(lengths) == _LENGTH and min(lengths) < _LENGTH
  assert len({str(own) for own in found[0] + found[1] + found[2]}) > 5
