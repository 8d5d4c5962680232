"""Training for control: probes are solved, devices do not matter."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import algorithms, environments, losses, networks, numerics
from lco_jax.control import dimensions, evaluation, training
from lco_jax.environments import probes, tabular
from lco_jax.training import (
  finiteness,
  optimizers,
  placement,
  program,
  transfers,
  update,
)

pytestmark = pytest.mark.third_party

_DISCOUNT = 0.9


def _make_setup(environment, algorithm="lco_mse", **overrides):
  settings = {
    "num_envs": 16,
    "num_steps": 16,
    "num_minibatches": 2,
    "discount": _DISCOUNT,
  }
  row = algorithms.ALGORITHMS[algorithm]
  return training.Setup(
    environment,
    networks.make_actor_critic(
      environment.observation_shape,
      environments.logits_shape(environment),
      (16,),
      "tanh",
      environments.legal_actions(environment),
    ),
    row,
    row.policy_loss(),
    training.Options(**(settings | overrides)),
  )


def _make_optimizers(learning_rate=1e-2, num_updates=60):
  chain = optimizers.make_optimizer(
    "adam",
    optimizers.make_schedule("linear", learning_rate, num_updates * 8),
    0.5,
  )
  return {"policy": chain, "value": chain}


def _make(
  environment,
  algorithm="lco_mse",
  learning_rate=1e-2,
  num_updates=60,
  **settings,
):
  setup = _make_setup(environment, algorithm, **settings)
  chains = _make_optimizers(learning_rate, num_updates)
  return setup.actor_critic, training.make_training(setup, chains)


def _train(task, num_updates, seeds=(0,), devices=None):
  """Trains, on one device if not told: (parameters, metrics, state)."""
  devices = devices or jax.devices()[:1]
  mesh = placement.make_mesh(len(seeds), task.num_streams, devices)
  state = program.initial_state(task, seeds, mesh)
  programs = program.compile_chunks(task, mesh, state, [num_updates])
  state, metrics = programs[num_updates](state)
  params, metrics = transfers.to_host((state.params, metrics))
  return params, metrics, state


# Values are learned in the same way, whatever the policy is trained by.
_ALONE = [
  name for name in probes.PROBES if (probes.PROBES[name]().actions < 0).all()
]
_TAUGHT = dict.fromkeys(_ALONE, ("lco_mse",)) | {
  "action": ("lco_mse", "lco_lch", "lco_kld", "lco_fisher", "ppo"),
  "action_given_observation": (
    *("lco_mse", "lco_lch", "lco_kld", "lco_fisher", "ppo", "reinforce"),
  ),
  "credit": tuple(algorithms.CONTROL),
  "dimensions": ("lco_mse", "lco_fisher", "lco_weighted", "ppo", "vmpo"),
}


def test_every_probe_is_learned():
  assert set(_TAUGHT) == set(probes.PROBES)


def _make_together(environment, names):
  """One program for several algorithms: each seed learns by one of them.

  The part "which" of a seed's parameters tells by which.
  """
  setups = [_make_setup(environment, name) for name in names]
  chains, net = _make_optimizers(), setups[0].actor_critic
  values = training.make_objective(setups[0])
  policy_losses = [
    dimensions.make_policy_loss(
      setup.algorithm,
      setup.policy_loss,
      environments.legal_actions(environment),
    )
    if environment.action_sizes
    else setup.policy_loss
    for setup in setups
  ]

  def prepare(params, rollout):
    made = [training.prepare(setup, params, rollout) for setup in setups]
    return [batch for batch, _ in made], made[0][1]

  def objective(params, batches, before=None):
    parts, _ = values(params, batches[0])
    logits = net.policy(params["policy"], batches[0].observation)
    each = [
      loss(logits, batch)[0]
      for loss, batch in zip(policy_losses, batches, strict=True)
    ]
    own = jnp.stack(each)[params["which"]]
    return parts | {"policy": numerics.average(own)}, {}

  return net, dataclasses.replace(
    training.make_training(setups[0], chains),
    init_params=lambda key, given: net.init(key) | dict(given),
    prepare=prepare,
    update=update.make_update(objective, chains),
    assess=lambda before, params, batches: {},
  )


@pytest.mark.parametrize("name", _TAUGHT)
def test_every_algorithm_solves_every_probe(name):
  probe, names = probes.PROBES[name](), _TAUGHT[name]
  net, task = _make_together(probe.environment, names)
  which = np.repeat(np.arange(len(names), dtype=np.int32), 3)
  mesh = placement.make_mesh(len(which), task.num_streams, jax.devices()[:1])
  state = program.initial_state(
    task, [0, 1, 2] * len(names), mesh, given={"which": which}
  )
  state, _ = program.compile_chunks(task, mesh, state, [60])[60](state)
  params = transfers.to_host(state.params)
  observations = jnp.asarray(probe.observations)
  logits = jax.vmap(net.policy, in_axes=(0, None))(
    params["policy"], observations
  )
  values = jax.vmap(net.value, in_axes=(0, None))(params["value"], observations)
  # [seeds, K, A], or [seeds, K, D, A].
  likely = np.asarray(jax.nn.softmax(logits))
  best = np.broadcast_to(probe.actions, likely.shape[:-1])
  chosen = np.take_along_axis(likely, np.maximum(best, 0)[..., None], -1)
  right = (chosen[..., 0] > 0.9) | (best < 0)
  expected = np.broadcast_to(probe.values(_DISCOUNT), values.shape)
  tolerance = 0.1 * max(1.0, np.abs(expected).max())
  for index, algorithm in enumerate(names):
    own = which == index
    assert right[own].all(), (algorithm, chosen[own])
    np.testing.assert_allclose(
      values[own], expected[own], atol=tolerance, err_msg=algorithm
    )


@pytest.mark.parametrize("algorithm", ["lco_mse", "lco_kld", "ppo"])
def test_tabular_policies_come_close_to_optimal(algorithm):
  """The exact discounted return of the learned policy, against the optimum.

  LCO-KLD's step is weighted by p(a), so that it is slow to become certain: its
  sampled policy trails its greedy one.
  """
  mdp = tabular.garnet()
  environment = environments.make("tabular:garnet")
  net, task = _make(environment, algorithm, num_updates=100, num_envs=32)
  params, _, _ = _train(task, 100)
  params = jax.tree.map(lambda x: x[0], params["policy"])
  logits = np.asarray(net.policy(params, jnp.eye(12)))
  sampled = np.asarray(jax.nn.softmax(logits))
  greedy = np.eye(4)[logits.argmax(-1)]
  uniform = np.full((12, 4), 0.25)
  best = float(mdp.initial @ tabular.optimal_q_values(mdp, _DISCOUNT).max(-1))
  worst = tabular.expected_return(mdp, uniform, _DISCOUNT)
  for policy, share in ((greedy, 0.9), (sampled, 0.7)):
    reached = tabular.expected_return(mdp, policy, _DISCOUNT)
    assert reached > worst + share * (best - worst)


@pytest.mark.parametrize("algorithm", ["lco_mse", "ppo"])
def test_eight_devices_match_one(algorithm):
  """The same global batch on 1 and 8 devices: 20 updates, every parameter."""
  environment = environments.make("CartPole-v1")
  _, task = _make(
    environment,
    algorithm,
    num_envs=16,
    num_steps=32,
    learning_rate=1e-3,
    num_updates=20,
  )
  one, metrics_one, _ = _train(task, 20, seeds=(0, 1))
  eight, metrics_eight, state = _train(
    task, 20, seeds=(0, 1), devices=jax.devices()
  )
  assert len(jax.devices()) == 8
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)
  np.testing.assert_array_equal(
    metrics_one["episodes"], metrics_eight["episodes"]
  )
  for leaf in jax.tree.leaves((state.params, state.opt_state)):
    first, *rest = (shard.data for shard in leaf.addressable_shards)
    assert len(rest) == 7 and first.shape == leaf.shape
    for replica in rest:
      np.testing.assert_array_equal(replica, first)


def test_seeds_dealt_to_devices_are_the_same_seeds():
  """Four seeds on one device, and on two."""
  _, task = _make(environments.make("CartPole-v1"), num_envs=4)
  alone, metrics, _ = _train(task, 3, seeds=(3, 1, 4, 5))
  dealt, metrics_dealt, state = _train(
    task, 3, seeds=(3, 1, 4, 5), devices=jax.devices()[:2]
  )
  assert [s.data.shape for s in state.update.addressable_shards] == [(2,)] * 2
  for a, b in zip(
    jax.tree.leaves((alone, metrics)),
    jax.tree.leaves((dealt, metrics_dealt)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_same_step_runs_under_pmap_and_vmap():
  """8 devices, or 8 shards on one, as on one device alone: the same update."""
  devices = jax.devices()
  assert len(devices) == 8
  _, task = _make(environments.make("CartPole-v1"), num_envs=16)
  mesh = placement.make_mesh(1, task.num_streams, devices[:1])
  state = transfers.to_host(program.initial_state(task, (0,), mesh))
  state = jax.tree.map(lambda leaf: leaf[0], state)
  step = functools.partial(program.train_step, task)
  expected, metrics = jax.jit(placement.bind_device_axis(step))(state)
  # A copy of the learner for each device, and a share of its environments.
  shards = dataclasses.replace(
    jax.tree.map(lambda leaf: np.stack([leaf] * 8), state),
    actor=jax.tree.map(
      lambda leaf: leaf.reshape(8, 2, *leaf.shape[1:]), state.actor
    ),
  )
  axis = numerics.DATA_AXIS
  for run in (
    jax.pmap(step, axis_name=axis, devices=devices),
    jax.jit(jax.vmap(step, axis_name=axis)),
  ):
    after, own_metrics = jax.tree.map(np.asarray, run(shards))
    assert (after.update == 1).all()
    for name, value in own_metrics.items():
      np.testing.assert_allclose(
        value, np.repeat(metrics[name], 8), rtol=1e-3, atol=1e-5, err_msg=name
      )
    for found, want in zip(
      jax.tree.leaves((after.params, after.opt_state)),
      jax.tree.leaves((expected.params, expected.opt_state)),
      strict=True,
    ):
      for replica in found:
        np.testing.assert_allclose(replica, want, atol=1e-5)
    for found, want in zip(
      jax.tree.leaves(after.actor), jax.tree.leaves(expected.actor), strict=True
    ):
      np.testing.assert_allclose(
        found.reshape(np.shape(want)), want, rtol=1e-5, atol=1e-6
      )


def test_training_is_reproducible_and_chunks_do_not_matter():
  environment = environments.make("CartPole-v1")
  _, task = _make(environment, num_envs=4)
  mesh = placement.make_mesh(1, task.num_streams, jax.devices()[:1])
  whole, _, _ = _train(task, 6)
  state = program.initial_state(task, (0,), mesh)
  programs = program.compile_chunks(task, mesh, state, [2, 4])
  state, _ = programs[4](state)
  state, _ = programs[2](state)
  assert int(state.update[0]) == 6
  chunked = transfers.to_host(state.params)
  for a, b in zip(
    jax.tree.leaves(whole), jax.tree.leaves(chunked), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_seeds_differ_and_do_not_depend_on_their_company():
  environment = environments.make("CartPole-v1")
  _, task = _make(environment, num_envs=4)
  together, metrics, _ = _train(task, 3, seeds=(5, 6))
  alone, _, _ = _train(task, 3, seeds=(6,))
  assert (metrics["policy_loss"][:, 0] != metrics["policy_loss"][:, 1]).any()
  for a, b in zip(
    jax.tree.leaves(together), jax.tree.leaves(alone), strict=True
  ):
    np.testing.assert_allclose(a[1], b[0], atol=1e-5)


def test_metrics_mean_what_they_say():
  environment = environments.make("probe:action")
  _, task = _make(environment, "ppo", num_envs=8)
  _, metrics, _ = _train(task, 30)
  first, last = ({k: v[i, 0] for k, v in metrics.items()} for i in (0, -1))
  np.testing.assert_allclose(first["entropy"], np.log(2), atol=0.01)
  assert last["entropy"] < 0.3
  assert last["episode_return_mean"] > 0.8 > first["episode_return_mean"]
  assert first["episode_return_min"] == -1 and first["episode_return_max"] == 1
  assert (metrics["episode_length_mean"] == 1).all()
  assert (metrics["episodes"] == 8 * 16).all()
  assert (metrics["kl_old_new"] >= -1e-6).all() and first["kl_old_new"] > 1e-4
  assert first["target_residual_after"] < first["target_residual_before"]
  assert first["policy_gradient_norm"] > 0
  assert 0 <= metrics["clip_fraction"].min() < metrics["clip_fraction"].max()


def test_vmpo_takes_weights_in_place_of_advantages():
  """Of the whole rollout; targets are made of advantages all the same."""
  environment = environments.make("probe:credit")
  batches = []
  for algorithm in ("mdpo", "vmpo"):
    net, task = _make(environment, algorithm, dual_bound=0.05)
    params = jax.jit(net.init)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), task.num_streams)

    @jax.jit
    @placement.bind_device_axis
    def prepare(params, keys, task=task):
      _, trajectory = task.collect(params, task.init_actor(keys), keys)
      return task.prepare(params, trajectory)[0]

    batches.append(prepare(params, keys))
  plain, weighted = batches
  expected = losses.vmpo_weights(plain.advantage, 0.05)
  np.testing.assert_allclose(weighted.advantage, expected, rtol=1e-4)
  np.testing.assert_array_equal(weighted.target_logits, plain.target_logits)


def test_updates_without_a_finished_episode_have_no_return():
  environment = environments.make("CartPole-v1")
  _, task = _make(environment, num_steps=4, num_envs=2)
  _, metrics, _ = _train(task, 1)
  assert metrics["episodes"][0, 0] == 0
  assert np.isnan(metrics["episode_return_mean"][0, 0])
  assert finiteness.first_nonfinite(metrics, task.counts) is None


def test_no_policy_gradient_leaks_into_the_values():
  """Parts share nothing: an algorithm cannot change the value network."""
  environment = environments.make("CartPole-v1")
  params = []
  for algorithm in ("lco_mse", "ppo"):
    _, task = _make(environment, algorithm)
    params.append(_train(task, 1)[0]["value"])
  for a, b in zip(*map(jax.tree.leaves, params), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_in_graph_evaluation_counts_one_episode_each():
  environment = environments.make("probe:credit")
  always_one = lambda params, observation: (
    jnp.broadcast_to(jnp.array([-50.0, 50.0]), (len(observation), 2)) + params
  )
  for greedy in (True, False):
    returns = evaluation.in_graph(
      environment, always_one, jnp.zeros(3), jax.random.key(0), 7, greedy
    )
    np.testing.assert_array_equal(returns, np.ones((3, 7)))


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ({"beta": 0.0}, "beta"),
    ({"beta": float("nan")}, "beta"),
    ({"beta": float("inf")}, "beta"),
    ({"nonpositive_beta_multiple": -1.0}, "nonpositive_beta_multiple"),
    ({"discount": 1.5}, "discount"),
    ({"gae_lambda": float("nan")}, "gae_lambda"),
    ({"num_minibatches": 5}, "num_minibatches 5 does not divide"),
    ({"num_epochs": 0}, "num_epochs"),
  ],
)
def test_wrong_settings_are_named(overrides, message):
  with pytest.raises(ValueError, match=message):
    _make(environments.make("probe:value"), **overrides)
