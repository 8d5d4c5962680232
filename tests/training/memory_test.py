"""Learning from past policies, and β by its rules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import (
  algorithms,
  environments,
  losses,
  networks,
  numerics,
  targets,
)
from lco_jax.control import training
from lco_jax.training import memory, optimizers, placement, program, transfers
from lco_jax.training import options as options_lib

pytestmark = pytest.mark.third_party


def _make_setup(algorithm="lco_fisher", **options):
  environment = environments.make("CartPole-v1")
  net = networks.make_actor_critic(
    environment.observation_shape, environment.num_actions, (8,), "tanh"
  )
  row = algorithms.ALGORITHMS[algorithm]
  settings = {"num_envs": 8, "num_steps": 16, "num_minibatches": 2}
  return training.Setup(
    environment,
    net,
    row,
    row.policy_loss(),
    training.Options(**(settings | options)),
  )


def _make(algorithm="lco_fisher", **options):
  setup = _make_setup(algorithm, **options)
  chain = optimizers.make_optimizer(
    "adam", optimizers.make_schedule("constant", 1e-2, 1), 0.5
  )
  return setup.actor_critic, training.make_training(
    setup, {"policy": chain, "value": chain}
  )


def _states(task, num_updates, devices=1):
  """The states before each update and after the last, on the host."""
  mesh = placement.make_mesh(1, task.num_streams, jax.devices()[:devices])
  state = program.initial_state(task, [0], mesh)
  step = program.compile_chunks(task, mesh, state, [1])[1]
  states, every = [transfers.to_host(state)], []
  for _ in range(num_updates):
    state, metrics = step(state)
    states.append(transfers.to_host(state))
    every.append(transfers.to_host(metrics))
  one = lambda tree: jax.tree.map(lambda x: x[0], tree)
  return [one(state) for state in states], [
    {name: float(values[0, 0]) for name, values in metrics.items()}
    for metrics in every
  ]


def _equal(one, two):
  return jax.tree.all(jax.tree.map(np.array_equal, one, two))


def test_rollouts_are_of_the_policy_k_updates_ago():
  net, task = _make(staleness=2)
  states, _ = _states(task, 5)
  policies = [state.params["policy"] for state in states]
  assert not _equal(policies[0], policies[1])
  for update, state in enumerate(states[:-1]):
    expected = policies[max(0, update - 2)]
    assert _equal(memory.acting(state.params)["policy"], expected)
    # And the rollout is its: the recorded logits are those it gives.
    collect = jax.vmap(
      lambda state: program.collect_step(task, state)[1],
      axis_name=numerics.DATA_AXIS,
    )
    rollout = collect(jax.tree.map(lambda x: jnp.asarray(x)[None], state))
    np.testing.assert_allclose(
      rollout.old_logits[0],
      net.policy(expected, rollout.observation[0]),
      rtol=1e-5,
      atol=1e-6,
    )


def test_without_staleness_nothing_is_kept_or_corrected():
  states = []
  for correction in ("none", "truncated"):
    _, task = _make(stale_correction=correction)
    states.append(_states(task, 1)[0][-1])
    assert states[-1].params.keys() == {"policy", "value"}
  assert _equal(states[0].params, states[1].params)


@pytest.mark.parametrize("correction", options_lib.CORRECTIONS)
def test_stale_weights(correction, float64):
  log_ratio = jnp.log(jnp.asarray([0.1, 0.5, 1.0, 1.9, 2.0, 8.0]))
  expected = {
    "none": [1, 1, 1, 1, 1, 1],
    "truncated": [0.1, 0.5, 1.0, 1.9, 2.0, 2.0],
    "masked": [0, 1, 1, 1, 1, 0],
  }[correction]
  weights = lambda x: losses.stale_weight(x, correction, 2.0 + 1e-9)
  np.testing.assert_allclose(weights(log_ratio), expected, atol=1e-8)
  slope = jax.grad(lambda x: jnp.sum(weights(x)))(log_ratio)
  np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.parametrize("correction", ["truncated", "masked"])
def test_corrected_steps_begin_from_the_learner(correction):
  """Weights turn them into its own; ratios and targets begin from it."""
  options = {
    "staleness": 2,
    "stale_correction": correction,
    "stale_ratio": 1.05,
  }
  net, task = _make(**options)
  states, _ = _states(task, 4)
  state = jax.tree.map(lambda x: jnp.asarray(x)[None], states[-1])
  rollout, batch = jax.jit(
    jax.vmap(lambda state: _prepared(task, state), axis_name=numerics.DATA_AXIS)
  )(state)
  rollout, batch = jax.tree.map(lambda x: x[0], (rollout, batch))
  own = net.policy(states[-1].params["policy"], rollout.observation)
  np.testing.assert_allclose(batch.old_logits, own, rtol=1e-5, atol=1e-6)
  log_prob, sampled = (
    np.asarray(numerics.action_log_prob(x, rollout.action))
    for x in (own, rollout.old_logits)
  )
  np.testing.assert_allclose(batch.old_log_prob, log_prob, rtol=1e-4, atol=1e-5)
  ratio = np.exp(log_prob - sampled)
  expected = {
    "truncated": np.minimum(ratio, 1.05),
    "masked": (ratio <= 1.05) & (ratio >= 1 / 1.05),
  }[correction]
  near = np.abs(np.abs(np.log(ratio)) - np.log(1.05)) < 1e-4
  np.testing.assert_allclose(
    np.asarray(batch.stale_weight)[~near], expected[~near], rtol=1e-4
  )
  assert np.ptp(batch.stale_weight) > 0.01
  # The loss of the policy is weighed, and nothing else.
  plain = dataclasses.replace(batch, stale_weight=None)
  objective = jax.jit(
    training.make_objective(_make_setup(entropy_coefficient=0.5))
  )
  moved = states[0].params  # Not the anchor's: there the loss is 0.
  logits = net.policy(moved["policy"], batch.observation)
  parts = [objective(moved, own)[0] for own in (batch, plain)]
  assert parts[0]["value"].mean == parts[1]["value"].mean
  each = losses.lco_fisher_loss(
    logits, batch.old_logits, batch.action, batch.advantage, 1.0
  )
  assert np.abs(each).max() > 1e-3
  np.testing.assert_allclose(
    parts[0]["policy"].mean,
    jnp.mean(batch.stale_weight * each - 0.5 * losses.entropy(logits)),
    rtol=1e-5,
    atol=1e-6,
  )


def _prepared(task, state):
  """A rollout, and the batch made of it."""
  _, rollout = program.collect_step(task, state)
  return rollout, task.prepare(state.params, rollout)[0]


def test_stale_steps_are_unbiased_with_weights(float64):
  """E_p[min(r, ∞) loss] is the loss of the learner's own samples."""
  rng = np.random.default_rng(0)
  z, old, stale, dense = (jnp.asarray(x) for x in rng.normal(size=(4, 5)))
  p = jax.nn.softmax(stale)
  actions = jnp.arange(5)
  every = lambda x: jnp.broadcast_to(x, (5, 5))
  log_ratio = jax.nn.log_softmax(old) - jax.nn.log_softmax(stale)
  weight = losses.stale_weight(log_ratio, "truncated", 1e9)
  each = losses.lco_fisher_loss(every(z), every(old), actions, dense, 1.0)
  np.testing.assert_allclose(
    p @ (weight * each),
    losses.lco_fisher_dense_loss(z, old, dense, 1.0),
    rtol=1e-10,
  )


@pytest.mark.parametrize(
  ("options", "line"),
  [
    ({"staleness": 1, "max_kl": 0.1}, "max_kl: needs the KL of one update"),
    ({"staleness": 1, "beta_rule": "feedback"}, "beta_rule: needs the KL"),
    ({"algorithm": "ppo", "beta_rule": "feedback"}, "no optimal target"),
    (
      {"beta_rule": "variance", "nonpositive_beta_multiple": 2.0},
      "nonpositive_beta_multiple",
    ),
    (
      {"reward_noise": 1.0, "normalize_rewards": True},
      "reward_noise: not with normalize_rewards",
    ),
  ],
)
def test_what_does_not_go_together_is_refused(options, line):
  with pytest.raises(ValueError, match=line):
    _make(**options)


@pytest.mark.parametrize("budget", [1e-3, 1e-1])
def test_feedback_moves_beta_towards_the_budget(budget):
  _, task = _make(beta_rule="feedback", kl_budget=budget)
  states, metrics = _states(task, 12)
  betas = [np.exp(state.params[memory.LOG_BETA]) for state in states]
  assert betas[0] == 1.0
  for before, after, own in zip(betas[:-1], betas[1:], metrics, strict=True):
    np.testing.assert_allclose(own["beta"], before, rtol=1e-5)
    error = np.clip(np.log(own["kl_old_new"] / budget), -2, 2)
    np.testing.assert_allclose(
      np.log(after / before), 0.1 * error, rtol=1e-3, atol=1e-5
    )


def test_beta_stays_in_its_range():
  options = training.Options(beta_rule="feedback", kl_budget=1.0, beta=0.5)
  params = memory.begin(options, {"policy": jnp.zeros(2)})
  for _ in range(200):
    params = memory.remember(options, params, params, {"kl_old_new": 0.0})
  np.testing.assert_allclose(memory.beta(options, params), 0.005, rtol=1e-4)
  assert memory.beta(training.Options(beta=0.5), {}) == 0.5


def test_beta_of_variance_is_the_kl_of_the_optimal_policy(float64):
  """To second order: with little advantage the KL is the budget."""
  rng = np.random.default_rng(0)
  old, advantage = jnp.asarray(rng.normal(size=(2, 40, 5)))
  probs = jax.nn.softmax(old)
  centred = advantage - jnp.sum(probs * advantage, -1, keepdims=True)
  variance = jnp.mean(jnp.sum(probs * centred**2, -1))
  beta = targets.beta_of_variance(variance, 1e-6)
  best = targets.optimal_logits(old, advantage, beta)
  np.testing.assert_allclose(
    jnp.mean(losses.kl_divergence(old, best)), 1e-6, rtol=1e-2
  )
  with pytest.raises(ValueError, match="kl_budget"):
    targets.beta_of_variance(variance, 0.0)


def test_kept_parts_do_not_depend_on_devices():
  options = {
    "staleness": 1,
    "stale_correction": "truncated",
    "beta_rule": "feedback",
  }
  one, _ = _states(_make(**options)[1], 3)
  eight, _ = _states(_make(**options)[1], 3, devices=8)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    one[-1].params,
    eight[-1].params,
  )


def test_a_variance_that_is_not_known_is_refused():
  with pytest.raises(ValueError, match="beta_rule: 'variance' needs"):
    _make(beta_rule="variance")
