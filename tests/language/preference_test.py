"""Preferences through the foundation's loop, on a tiny model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import networks, numerics, tasks
from lco_jax.language import generation, preference
from lco_jax.runs import runner
from lco_jax.training import optimizers, placement, program

# Flax and optax mix ranks.
pytestmark = pytest.mark.third_party


def _make(beta=0.5, num_prompts=16, num_pairs=4, algorithm="dpo"):
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
  return model, preference.make_training(
    task,
    model,
    optimizers.make_optimizer("adam", schedule, 1.0),
    algorithm=algorithm,
    num_prompts=num_prompts,
    num_pairs=num_pairs,
    num_epochs=1,
    num_minibatches=1,
    sampling=generation.Sampling(),
    beta=beta,
  )


def test_preferences_are_learned_and_the_reference_stays():
  """Endings that are never right (20 of 25) are told from those that are."""
  _, task = _make(num_prompts=64)
  # A step is a pair, of two samples.
  assert task.steps_per_update == 64 * 4 * 2
  mesh = placement.make_mesh(1, task.num_streams, jax.devices()[:1])
  start = runner.begin(task, (0,), mesh)
  reference = placement.to_host(start.state.params["reference"])
  programs = program.compile_chunks(task, mesh, start.state, [40])
  state, metrics = programs[40](start.state)
  metrics = placement.to_host(metrics)
  assert metrics["preference_accuracy"][-10:].mean() > 0.9
  assert metrics["preference_margin"][-1] > 1
  assert 0 < metrics["correct"].mean() < 0.3
  for a, b in zip(
    jax.tree.leaves(reference),
    jax.tree.leaves(placement.to_host(state.params["reference"])),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def test_the_loss_against_a_loop():
  """The first step: ln 2 for every pair with a winner, from equal policies."""
  model, task = _make(num_prompts=32)
  params = task.init_params(jax.random.key(0))
  keys = jax.random.split(jax.random.key(1), 32)
  _, samples = jax.jit(lambda p, k: task.collect(p, (), k))(params, keys)
  assert samples.reward.shape == (4, 32, 2)
  np.testing.assert_array_equal(
    samples.prompt[:, :, 0], samples.prompt[0, :, :1][:, 0][None].repeat(4, 0)
  )
  batch, metrics = jax.jit(placement.bind_device_axis(task.prepare))(
    params, samples, 0
  )
  spread = np.asarray(samples.reward[..., 0] != samples.reward[..., 1])
  assert 0 < spread.sum() < spread.size
  np.testing.assert_allclose(
    metrics["even_pairs"], 1 - spread.mean(), rtol=1e-6
  )
  logits = generation.completion_logits(
    model,
    params["policy"],
    samples.prompt,
    samples.padding,
    samples.action,
  )
  tokens = numerics.action_log_prob(logits, samples.action)
  np.testing.assert_allclose(
    batch.old_log_prob,
    jnp.where(samples.mask, tokens, 0).sum(-1),
    rtol=1e-5,
  )
  flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
  opt_state = {"policy": task.optimizers["policy"].init(params["policy"])}
  step = jax.jit(placement.bind_device_axis(task.update))
  _, _, found = step(params, opt_state, flat)
  np.testing.assert_allclose(found["policy_loss"].mean, np.log(2), rtol=1e-5)
  assert found["policy_loss"].count == spread.sum()


def test_differences_of_reward_are_learned_from():
  """REBEL: right endings (1 in 25 at first) come to be half of all."""
  _, task = _make(num_prompts=32, algorithm="rebel")
  mesh = placement.make_mesh(1, task.num_streams, jax.devices()[:1])
  start = runner.begin(task, (0,), mesh)
  programs = program.compile_chunks(task, mesh, start.state, [60])
  _, metrics = programs[60](start.state)
  metrics = placement.to_host(metrics)
  assert metrics["correct"][:3].mean() < 0.2
  assert metrics["correct"][-10:].mean() > 0.4
  assert np.isfinite(metrics["kl_old_new"]).all()
  # From its own completions, ratios are 1: the loss is the squared difference.
  different = 1 - metrics["even_pairs"][0]
  np.testing.assert_allclose(metrics["policy_loss"][0], different, rtol=1e-4)


def test_what_cannot_be():
  with pytest.raises(ValueError, match="algorithm"):
    _make(algorithm="ppo")
  with pytest.raises(ValueError, match="beta"):
    _make(beta=0.0)
