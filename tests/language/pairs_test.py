"""Training by pairs, against NumPy; and that it learns to tell."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lco_jax import networks, numerics, tasks, types
from lco_jax.language import data, generation, host_sampler, pairs, samplers
from lco_jax.runs import starts
from lco_jax.training import optimizers, placement, program, rows, transfers
from tests import completions

# Flax and optax mix ranks.
pytestmark = pytest.mark.third_party

_SAMPLES, _PROMPTS, _LENGTH, _VOCABULARY = 4, 3, 5, 13


def _make(
  beta=0.5, num_prompts=16, num_pairs=4, num_minibatches=1, algorithm="dpo"
):
  task = tasks.make("parity:6")
  model = networks.make_language_model(
    networks.TransformerConfig(
      vocab_size=task.vocab_size,
      num_layers=1,
      width=32,
      num_heads=2,
      num_kv_heads=1,
      mlp_width=48,
    )
  )
  schedule = optimizers.make_schedule("constant", 3e-3, 1)
  options = pairs.Options(
    num_prompts=num_prompts,
    num_samples=2 * num_pairs,
    group_size=2,
    num_minibatches=num_minibatches,
    chunk_tokens=0,
    beta=beta,
  )
  sampler = samplers.make_sampler(
    task,
    model,
    options.num_samples,
    generation.Sampling(),
    part=pairs.source_of(algorithm),
  )
  optimizer = optimizers.make_optimizer("adam", schedule, 1.0)
  return model, pairs.make_training(
    model, algorithm, optimizer, sampler, options
  )


def test_preferences_are_learned_and_the_reference_stays():
  """Endings that are never right (20 of 25) are told from those that are."""
  _, task = _make(num_prompts=64)
  mesh = placement.make_mesh(1, task.num_streams, jax.devices()[:1])
  start = starts.begin(task, (0,), mesh)
  reference = transfers.to_host(start.state.params["reference"])
  programs = program.compile_chunks(task, mesh, start.state, [40])
  state, metrics = programs[40](start.state)
  metrics = transfers.to_host(metrics)
  assert metrics["preference_accuracy"][-10:].mean() > 0.9
  assert metrics["preference_margin"][-1] > 1
  assert 0 < metrics["correct"].mean() < 0.3
  for a, b in zip(
    jax.tree.leaves(reference),
    jax.tree.leaves(transfers.to_host(state.params["reference"])),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def test_the_loss_against_a_loop():
  """The first step: ln 2 for every pair with a winner, from equal policies."""
  model, task = _make(num_prompts=32)
  params = jax.jit(task.init_params)(jax.random.key(0))
  keys = jax.random.split(jax.random.key(1), 32)
  _, samples = jax.jit(lambda p, k: task.collect(p, (), k))(params, keys)
  assert samples.reward.shape == (8, 32)
  batch, metrics = jax.jit(placement.bind_device_axis(task.prepare))(
    params, samples
  )
  assert batch.reward.shape == (4, 32, 2)
  np.testing.assert_array_equal(
    batch.prompt,
    np.broadcast_to(samples.prompt[0][:, None], batch.prompt.shape),
  )
  assert task.steps_per_update == 8 * 32
  spread = np.asarray(batch.reward[..., 0] != batch.reward[..., 1])
  assert 0 < spread.sum() < spread.size
  np.testing.assert_allclose(
    metrics["even_pairs"], 1 - spread.mean(), rtol=1e-6
  )
  logits = completions.read_logits(
    model,
    params["policy"],
    batch.prompt,
    batch.padding,
    batch.action,
  )
  tokens = numerics.action_log_prob(logits, batch.action)
  np.testing.assert_allclose(
    batch.old_log_prob, jnp.where(batch.mask, tokens, 0), atol=1e-5
  )
  flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
  opt_state = {"policy": task.optimizers["policy"].init(params["policy"])}
  step = jax.jit(placement.bind_device_axis(task.update))
  _, _, found = step(params, opt_state, flat)
  np.testing.assert_allclose(found["policy_loss"].mean, np.log(2), rtol=1e-5)
  assert found["policy_loss"].count == spread.sum()


def test_minibatches_are_read_with_their_prompts():
  """Groups of any minibatch score as they do when all are read together."""
  model, task = _make(num_prompts=4, num_minibatches=2, beta=1.0)
  params = jax.jit(task.init_params)(jax.random.key(0))
  other = jax.jit(model.init)(jax.random.key(5))
  keys = jax.random.split(jax.random.key(1), 4)
  _, samples = jax.jit(lambda p, k: task.collect(p, (), k))(params, keys)
  batch, _ = jax.jit(placement.bind_device_axis(task.prepare))(params, samples)
  times = np.array([[3, 0, 1, 2], [1, 2, 3, 0]])  # Of each prompt, others.
  taken = rows.take_steps(batch, jnp.asarray(times))
  opt_state = {"policy": task.optimizers["policy"].init(other)}
  step = jax.jit(placement.bind_device_axis(task.update))
  _, _, found = step(params | {"policy": other}, opt_state, taken)
  logits = completions.read_logits(
    model, other, taken.prompt, taken.padding, taken.action
  )
  ratio = numerics.action_log_prob(logits, taken.action) - taken.old_log_prob
  scores = np.asarray(jnp.where(taken.mask, ratio, 0.0).sum(-1))
  reward = np.asarray(taken.reward)
  margins = np.where(
    reward[:, 0] > reward[:, 1],
    scores[:, 0] - scores[:, 1],
    scores[:, 1] - scores[:, 0],
  )[reward[:, 0] != reward[:, 1]]
  assert len(margins) > 0
  np.testing.assert_allclose(
    found["policy_loss"].mean, np.log1p(np.exp(-margins)).mean(), rtol=1e-4
  )


def test_differences_of_reward_are_learned_from():
  """REBEL: right endings (1 in 25 at first) come to be half of all."""
  _, task = _make(num_prompts=32, algorithm="rebel")
  mesh = placement.make_mesh(1, task.num_streams, jax.devices()[:1])
  start = starts.begin(task, (0,), mesh)
  programs = program.compile_chunks(task, mesh, start.state, [60])
  _, metrics = programs[60](start.state)
  metrics = transfers.to_host(metrics)
  assert metrics["correct"][:3].mean() < 0.2
  assert metrics["correct"][-10:].mean() > 0.4
  assert np.isfinite(metrics["kl_old_new"]).all()
  # From its own completions, ratios are 1: the loss is the squared difference.
  different = 1 - metrics["even_pairs"][0]
  np.testing.assert_allclose(metrics["policy_loss"][0], different, rtol=1e-4)


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
  return data.Samples(
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
  task = pairs.make_training(
    model,
    algorithm,
    optimizer,
    host_sampler.make_sampler(_LENGTH),
    pairs.Options(
      num_prompts=_PROMPTS,
      num_samples=_SAMPLES,
      chunk_tokens=7,
      beta=0.4,
      cross_entropy_coefficient=0.5,
    ),
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


@pytest.mark.parametrize("algorithm", pairs.VERIFIERS)
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
        scaled = 0.2 * margin - 2.0 if algorithm == "qrm" else margin
        loss = np.log1p(np.exp(-scaled))
        losses.append(loss - 0.5 * scores[0] * (algorithm == "qrm"))
        rights.append(margin > 0)
  assert len(losses) == 4
  np.testing.assert_allclose(metrics["policy_loss"], np.mean(losses), rtol=1e-4)
  np.testing.assert_allclose(
    metrics["preference_accuracy"], np.mean(rights), rtol=1e-5
  )
  shape = (_SAMPLES, _SAMPLES, _PROMPTS)
  np.testing.assert_allclose(metrics["paired"], len(losses) / np.prod(shape))


@pytest.mark.parametrize("algorithm", pairs.VERIFIERS)
def test_it_learns_to_tell(model, algorithm):
  """The reference stays; the verifier ends right about every pair."""
  step, state = _step(model, algorithm, optax.sgd(1.0))
  samples = _samples(model, state.params["policy"])
  before = state.params[pairs.source_of(algorithm)]
  for _ in range(60):
    state, metrics = step(state, samples)
  assert metrics["preference_accuracy"] == 1.0
  jax.tree.map(
    np.testing.assert_array_equal,
    state.params[pairs.source_of(algorithm)],
    before,
  )


@pytest.mark.parametrize(
  ("options", "says"),
  [
    ({"num_samples": 1}, "num_samples must be finite and ≥ 2"),
    ({"num_samples": 5, "group_size": 2}, "multiple of 2"),
    ({"beta": 0.0}, "beta"),
    ({"cross_entropy_coefficient": -1.0}, "cross_entropy_coefficient"),
    ({"chunk_tokens": -1}, "chunk_tokens"),
  ],
)
def test_numbers_that_cannot_be(options, says):
  with pytest.raises(ValueError, match=says):
    pairs.Options(**options)


def test_algorithms_that_cannot_be():
  with pytest.raises(ValueError, match="algorithm: unknown 'ppo'"):
    _make(algorithm="ppo")
