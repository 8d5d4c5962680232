"""Reading what was answered: a prompt once for all of its answers."""

import jax
import numpy as np
import pytest

from lco_jax import networks, text_generation

_VOCABULARY, _LENGTH = 13, 4


@pytest.mark.parametrize("batch_size", [1, 6, 64])
def test_answers_are_as_likely_as_in_texts_of_their_own(batch_size):
  model = networks.make_language_model(
    networks.TransformerConfig(
      vocab_size=_VOCABULARY,
      num_layers=2,
      width=16,
      num_heads=2,
      num_kv_heads=1,
      mlp_width=16,
    )
  )
  params = jax.jit(model.init)(jax.random.key(0))
  completer = text_generation.Completer(model, (0,), _LENGTH, batch_size)
  rng = np.random.default_rng(0)

  def some(least, most):
    return rng.integers(1, _VOCABULARY, rng.integers(least, most + 1)).tolist()

  prompts = [some(2, 20) for _ in range(5)]
  answers = [[some(1, _LENGTH) for _ in prompts] for _ in range(3)]
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
