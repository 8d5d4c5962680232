"""What is kept between updates: past policies and a chosen β."""

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
from lco_jax.training import memory, optimizers, placement, program
from lco_jax.training import options as options_lib

pytestmark = pytest.mark.third_party


def _make(algorithm="lco_fisher", **options):
  environment = environments.make("CartPole-v1")
  net = networks.make_actor_critic(
    environment.observation_shape, environment.num_actions, (8,), "tanh"
  )
  row = algorithms.ALGORITHMS[algorithm]
  settings = {"num_envs": 8, "num_steps": 16, "num_minibatches": 2}
  setup = training.Setup(
    environment,
    net,
    row,
    row.policy_loss(),
    training.Options(**(settings | options)),
  )
  chain = optimizers.make_optimizer(
    "adam", optimizers.make_schedule("constant", 1e-2, 1), 0.5
  )
  return net, training.make_training(setup, {"policy": chain, "value": chain})


def _states(task, num_updates, devices=1):
  """The states before each update and after the last, on the host."""
  mesh = placement.make_mesh(1, task.num_streams, jax.devices()[:devices])
  state = program.initial_state(task, [0], mesh)
  step = program.compile_chunks(task, mesh, state, [1])[1]
  states, every = [placement.to_host(state)], []
  for _ in range(num_updates):
    state, metrics = step(state)
    states.append(placement.to_host(state))
    every.append(placement.to_host(metrics))
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
      axis_name=numerics.DEVICE_AXIS,
    )
    rollout = collect(jax.tree.map(lambda x: jnp.asarray(x)[None], state))
    np.testing.assert_allclose(
      rollout.old_logits[0],
      net.policy(expected, rollout.observation[0]),
      rtol=1e-5,
      atol=1e-6,
    )


def test_without_staleness_nothing_is_kept():
  _, task = _make()
  states, _ = _states(task, 1)
  assert states[0].params.keys() == {"policy", "value"}


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


def test_corrections_weigh_the_policys_loss():
  """With one policy they change nothing; with a stale one they do."""
  fresh = _states(_make()[1], 2)[0][-1].params
  same = _states(_make(stale_correction="truncated")[1], 2)[0][-1].params
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    fresh,
    same,
  )
  plain = _states(_make(staleness=2)[1], 4)[0][-1].params
  for correction in ("truncated", "masked"):
    task = _make(staleness=2, stale_correction=correction, stale_ratio=1.02)[1]
    corrected = _states(task, 4)[0][-1].params
    assert not _equal(plain["policy"], corrected["policy"])
    # Values do not depend on who acted.
    first = _states(task, 1)[0][-1].params
    assert _equal(
      first["value"], _states(_make(staleness=2)[1], 1)[0][1].params["value"]
    )


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
  options = {"staleness": 1, "beta_rule": "feedback"}
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
