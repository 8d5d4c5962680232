"""Verifiers by pairs, against NumPy; and that they learn to tell."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lco_jax import networks, types
from lco_jax.language import data, verifier
from lco_jax.training import placement, program

_SAMPLES, _PROMPTS, _LENGTH, _VOCABULARY = 4, 3, 5, 13


@pytest.fixture(scope="module")
def model():
  return networks.make_language_model(
    networks.TransformerConfig(
      vocab_size=_VOCABULARY,
      num_layers=1,
      width=16,
      num_heads=2,
      num_kv_heads=1,
      mlp_width=16,
    )
  )


def _samples(model, params):
  """Completions of random tokens; those with more of token 3 are better."""
  rng = np.random.default_rng(0)
  shape = (_SAMPLES, _PROMPTS)
  prompt = np.broadcast_to(
    rng.integers(0, _VOCABULARY, (_PROMPTS, 2)), (*shape, 2)
  ).astype(np.int32)
  action = rng.integers(0, _VOCABULARY, (*shape, _LENGTH)).astype(np.int32)
  action[:2, :, 1] = 3
  mask = np.arange(_LENGTH) < rng.integers(2, _LENGTH + 1, (*shape, 1))
  reward = ((action == 3) & mask).sum(-1).astype(np.float32)
  reward[:, 2] = 1.0  # A prompt without pairs.
  failed = np.zeros(shape, bool)
  failed[3, 0] = True  # A sample without any.
  tokens = np.concatenate([prompt, action[..., :-1]], axis=-1)
  logits, _ = jax.jit(model.apply)(
    params, tokens.reshape(-1, tokens.shape[-1]), jnp.zeros(12, jnp.int32)
  )
  log_probs = np.asarray(jax.nn.log_softmax(logits[:, 1:]))
  chosen = np.take_along_axis(
    log_probs.reshape(*shape, _LENGTH, -1), action[..., None], axis=-1
  )[..., 0]
  blank = np.zeros(shape, bool)
  return data.TextSamples(
    prompt=jnp.asarray(prompt),
    padding=jnp.zeros(shape, jnp.int32),
    action=jnp.asarray(action),
    mask=jnp.asarray(mask),
    hidden=jnp.zeros((*shape, _LENGTH, 16)),
    log_prob=jnp.asarray(np.where(mask, chosen, 0.0)),
    reward=jnp.asarray(reward),
    correct=jnp.asarray(reward >= 1),
    truncated=jnp.asarray(blank),
    failed=jnp.asarray(failed),
    first_visit=jnp.asarray(~blank),
  )


def _step(model, algorithm, optimizer):
  """(update of one batch, its state) of a verifier, jitted."""
  task = verifier.make_training(
    model,
    optimizer,
    algorithm=algorithm,
    num_prompts=_PROMPTS,
    num_samples=_SAMPLES,
    chunk_tokens=7,
    beta=0.4,
    cross_entropy_coefficient=0.5,
  )
  own = jax.jit(model.init)(jax.random.key(0))
  params = task.init_params(None, {"policy": own})
  state = types.LearnerState(
    params=params,
    opt_state={"policy": optimizer.init(own)},
    actor=(),
    key=jax.random.key_data(jax.random.key(1)),
    update=jnp.int32(0),
  )

  def step(state, samples):
    return program.learn_step(task, state, (), samples)

  return jax.jit(placement.bind_device_axis(step)), state


@pytest.mark.parametrize("algorithm", verifier.ALGORITHMS)
def test_loss_against_numpy(model, algorithm):
  """Over all pairs of a better and a worse sample of a prompt."""
  step, state = _step(model, algorithm, optax.sgd(0.0))
  other = jax.jit(model.init)(jax.random.key(5))
  samples = _samples(model, state.params["policy"])
  moved = _samples(model, other)
  state.params["policy"] = other
  _, metrics = step(state, samples)
  own, base = np.asarray(moved.log_prob), np.asarray(samples.log_prob)
  mask, reward = np.asarray(samples.mask), np.asarray(samples.reward)
  failed = np.asarray(samples.failed)
  losses, rights = [], []
  for n in range(_PROMPTS):
    for i in range(_SAMPLES):
      for j in range(_SAMPLES):
        if not reward[i, n] > reward[j, n] or failed[[i, j], n].any():
          continue
        scores = []
        for k in (i, j):
          kept = mask[k, n]
          scores.append(
            own[k, n][kept].mean()
            if algorithm == "qrm"
            else 0.4 * (own[k, n] - base[k, n])[kept].sum()
          )
        margin = scores[0] - scores[1]
        loss = np.log1p(np.exp(-margin))
        losses.append(loss - 0.5 * scores[0] * (algorithm == "qrm"))
        rights.append(margin > 0)
  assert len(losses) == 4
  np.testing.assert_allclose(metrics["policy_loss"], np.mean(losses), rtol=1e-4)
  np.testing.assert_allclose(
    metrics["preference_accuracy"], np.mean(rights), rtol=1e-5
  )
  shape = (_SAMPLES, _SAMPLES, _PROMPTS)
  np.testing.assert_allclose(metrics["paired"], len(losses) / np.prod(shape))


@pytest.mark.parametrize("algorithm", verifier.ALGORITHMS)
def test_it_learns_to_tell(model, algorithm):
  """The reference stays; the verifier ends right about every pair."""
  step, state = _step(model, algorithm, optax.sgd(1.0))
  samples = _samples(model, state.params["policy"])
  before = state.params[verifier.SOURCE]
  for _ in range(60):
    state, metrics = step(state, samples)
  assert metrics["preference_accuracy"] == 1.0
  jax.tree.map(
    np.testing.assert_array_equal, state.params[verifier.SOURCE], before
  )


@pytest.mark.parametrize(
  ("options", "says"),
  [
    ({"algorithm": "x"}, "algorithm: unknown 'x'"),
    ({"num_samples": 1}, "num_samples must be ≥ 2"),
    ({"beta": 0.0}, "beta"),
    ({"cross_entropy_coefficient": -1.0}, "cross_entropy_coefficient"),
    ({"chunk_tokens": -1}, "chunk_tokens"),
  ],
)
def test_numbers_that_cannot_be(model, options, says):
  options = {"algorithm": "qrm", "num_prompts": 1, "num_samples": 2} | options
  with pytest.raises(ValueError, match=says):
    verifier.make_training(model, optax.sgd(1.0), **options)
