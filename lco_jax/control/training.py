"""Control training: learning from what an actor-critic does in environments.

A stream is an environment: N of them in an update, with T steps in each. Axes:
time steps T, environments N, actions A.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax.numpy as jnp
import optax
from jax import Array

from lco_jax import (
  advantages,
  algorithms,
  diagnostics,
  environments,
  losses,
  networks,
  numerics,
  targets,
  types,
)
from lco_jax.algorithms import policy_losses
from lco_jax.checks import setting
from lco_jax.control import data, dimensions, normalization, rollout
from lco_jax.training import loss_geometry, memory, program, update
from lco_jax.training import options as options_lib

DATA_AXIS = numerics.DATA_AXIS

# Metrics of episodes are NaN where none ended: `Training.counts`.
COUNTS = {
  f"episode_{name}": "episodes"
  for name in (
    "return_mean",
    "return_min",
    "return_max",
    "length_mean",
    "length_min",
    "length_max",
  )
}


@dataclasses.dataclass(frozen=True)
class Options(options_lib.PolicyOptions):
  """Settings of learning in environments."""

  num_envs: int = setting(16, "environments, N, over all devices", at_least=1)
  num_steps: int = setting(
    128, "steps that a rollout takes in each environment, T", at_least=1
  )
  num_epochs: int = setting(4, "passes over each rollout", at_least=1)
  num_minibatches: int = setting(
    4, "minibatches of a pass, a divisor of num_steps", at_least=1
  )
  discount: float = setting(0.99, "γ", at_least=0.0, at_most=1.0)
  gae_lambda: float = setting(
    0.95, "λ of the advantage estimate", at_least=0.0, at_most=1.0
  )
  normalize_advantages: bool = setting(
    True, "whether a rollout's advantages get mean 0 and variance 1"
  )
  normalize_observations: bool = setting(
    False, "whether observations get running mean 0 and variance 1"
  )
  normalize_rewards: bool = setting(
    False, "whether rewards are divided by the running std of returns"
  )
  reward_noise: float = setting(
    0.0, "standard deviation of noise on rewards; not on the host", at_least=0.0
  )
  value_clip: float | None = setting(
    None, "largest move of a value, in units of return; None for any", above=0.0
  )


@dataclasses.dataclass(frozen=True)
class Setup:
  """All that the steps of a control training depend on.

  Attributes:
    environment: in the graph or on the host; with one on the host the training
      has no `collect`, see host_rollout.
    actor_critic: its networks.
    algorithm: a row of `algorithms.CONTROL`.
    policy_loss: the algorithm's, with its options.
    options: settings of learning.

  Raises:
    ValueError: if settings do not go together.
  """

  environment: environments.Environment | environments.HostEnvironment
  actor_critic: networks.ActorCritic
  algorithm: algorithms.Algorithm
  policy_loss: policy_losses.PolicyLoss
  options: Options

  def __post_init__(self):
    if self.options.reward_noise and self.on_host:
      raise ValueError("reward_noise: for environments in the graph alone")
    if self.options.beta_rule != "fixed" and not self.algorithm.has_target:
      raise ValueError("beta_rule: the algorithm has no optimal target")
    if self.options.reward_noise and self.options.normalize_rewards:
      raise ValueError(
        "reward_noise: not with normalize_rewards, whose scale is without noise"
      )
    if self.options.beta_rule == "variance":
      raise ValueError(
        "beta_rule: 'variance' needs the advantages of all actions; here only"
        " the sampled action's is known"
      )
    if self.options.diagnostics and self.environment.action_sizes:
      raise ValueError(
        "diagnostics: not for actions of several dimensions, which"
        f" {self.environment.name!r} has"
      )

  @property
  def return_discount(self) -> float | None:
    """γ of the discounted returns that rollouts keep; None for none."""
    options = self.options
    return options.discount if options.normalize_rewards else None

  @property
  def on_host(self) -> bool:
    """Whether Python steps the environment."""
    return isinstance(self.environment, environments.HostEnvironment)


def make_training(
  setup: Setup, optimizers: Mapping[str, optax.GradientTransformation]
) -> program.Training:
  """Builds the training of an actor-critic.

  Args:
    setup: all that its steps depend on.
    optimizers: of the parts "policy" and "value".
  """
  options = setup.options
  init_actor, collect = _make_collection(setup)
  return program.Training(
    init_params=functools.partial(init_params, setup),
    init_actor=init_actor,
    collect=collect,
    prepare=functools.partial(prepare, setup),
    update=update.make_update(make_objective(setup), dict(optimizers)),
    assess=functools.partial(assess, setup),
    optimizers=dict(optimizers),
    headline="episode_return_mean",
    num_streams=options.num_envs,
    num_steps=options.num_steps,
    num_epochs=options.num_epochs,
    num_minibatches=options.num_minibatches,
    remember=functools.partial(_remember, setup),
    max_kl=options.max_kl,
    counts=COUNTS,
  )


def init_params(setup: Setup, key: types.PRNGKey) -> dict[str, types.Params]:
  """Parameters by part before the first update."""
  options = setup.options
  params = memory.begin(options, setup.actor_critic.init(key))
  return normalization.begin(
    params,
    tuple(setup.environment.observation_shape),
    options.normalize_observations,
    options.normalize_rewards,
  )


def make_policy(setup: Setup) -> types.Apply:
  """The policy as it acts: (params by part, observation [..., O]) → logits."""

  def policy(params, observation):
    observation = normalization.normalize_observation(params, observation)
    return setup.actor_critic.policy(params["policy"], observation)

  return policy


def _remember(setup: Setup, before, after, trajectory, metrics):
  """Parameters after an update, with what is kept brought up to date."""
  after = memory.remember(setup.options, before, after, metrics)
  return normalization.remember(
    after, trajectory.observation, trajectory.discounted_return
  )


def make_objective(setup: Setup) -> update.Objective:
  """Builds the objective of an actor-critic.

  Returns:
    (params, Batch, not used) → (losses of the parts "policy", the entropy bonus
    included, and "value"; metrics).
  """
  options, actor_critic = setup.options, setup.actor_critic
  policy_loss = setup.policy_loss
  if setup.environment.action_sizes:
    policy_loss = dimensions.make_policy_loss(
      setup.algorithm,
      policy_loss,
      environments.legal_actions(setup.environment),
    )

  def objective(params, batch, before=None):
    del before
    logits = actor_critic.policy(params["policy"], batch.observation)
    loss, metrics = policy_loss(logits, batch)
    if batch.stale_weight is not None:
      loss = batch.stale_weight * loss
    loss = loss - options.entropy_coefficient * dimensions.total(
      losses.entropy(logits), loss
    )
    values = actor_critic.value(params["value"], batch.observation)
    if options.value_clip is None:
      value_loss = losses.squared_value_loss(values, batch.value_target)
    else:
      value_loss = losses.clipped_value_loss(
        values, batch.old_value, batch.value_target, options.value_clip
      )
    if options.max_kl is not None:
      metrics[update.KL] = dimensions.total(
        losses.kl_divergence(batch.old_logits, logits), loss
      )
    return {
      "policy": numerics.average(loss),
      "value": numerics.average(value_loss),
    }, {name: numerics.average(values) for name, values in metrics.items()}

  return objective


def prepare(
  setup: Setup,
  params: Mapping[str, types.Params],
  trajectory: data.Trajectory,
) -> tuple[data.Batch, types.Metrics]:
  """Makes the batch that the objective reads from a rollout.

  Args:
    setup: of the training.
    params: by part, at the beginning of the update.
    trajectory: [T, N], this device's share.

  Returns:
    (Batch [T, N], metrics over all devices).
  """
  options, actions = setup.options, trajectory.action
  trajectory = dataclasses.replace(
    trajectory,
    reward=normalization.normalize_reward(params, trajectory.reward),
    observation=normalization.normalize_observation(
      params, trajectory.observation
    ),
    next_observation=normalization.normalize_observation(
      params, trajectory.next_observation
    ),
  )
  values, next_values = setup.actor_critic.value(
    params["value"],
    jnp.stack([trajectory.observation, trajectory.next_observation]),
  )
  advantage = advantages.generalized_advantage_estimation(
    trajectory.reward,
    values,
    next_values,
    trajectory.terminated,
    trajectory.done,
    options.discount,
    options.gae_lambda,
  )
  value_target = advantage + values
  if options.normalize_advantages:
    mean, variance = diagnostics.moments(advantage, DATA_AXIS)
    advantage = advantages.normalized(advantage, mean, variance)
  old_logits, stale_weight = _anchor(setup, params, trajectory)
  beta = targets.sign_dependent_beta(
    advantage, memory.beta(options, params), options.nonpositive_beta_multiple
  )[..., 0]
  target_logits = targets.optimal_logits(
    old_logits,
    advantages.sampled(
      dimensions.spread(advantage, actions),
      actions,
      setup.environment.num_actions,
    ),
    dimensions.spread(beta, actions)[..., None],
  )
  advantage = algorithms.weigh_steps(
    setup.algorithm, advantage, beta, options.dual_bound
  )
  batch = data.Batch(
    observation=trajectory.observation,
    action=actions,
    advantage=advantage,
    old_logits=old_logits,
    old_log_prob=dimensions.total(
      numerics.action_log_prob(old_logits, actions), values
    ),
    target_logits=target_logits,
    beta=beta,
    old_value=values,
    value_target=value_target,
    stale_weight=stale_weight,
  )
  metrics = summarize_episodes(trajectory) | numerics.across_devices(
    {
      "entropy": numerics.average(
        dimensions.total(losses.entropy(old_logits), values)
      ),
      "target_residual_before": numerics.average(
        diagnostics.target_residual(target_logits, old_logits)
      ),
    }
  )
  if options.beta_rule != "fixed":
    metrics["beta"] = memory.beta(options, params)
  metrics["explained_variance"] = diagnostics.explained_variance(
    values, value_target, DATA_AXIS
  )
  return batch, metrics


def _anchor(
  setup: Setup, params: Mapping[str, types.Params], trajectory: data.Trajectory
) -> tuple[Array, Array | None]:
  """Logits that targets and ratios begin from, and weights of stale steps.

  Without a correction they are those of the policy that acted, which has no
  weights. With one they are the learner's at the beginning of the update, and
  the weights turn steps of the policy that acted into its own: no ratio is
  then counted twice.
  """
  options = setup.options
  if not options.corrects_stale:
    return trajectory.old_logits, None
  logits = setup.actor_critic.policy(params["policy"], trajectory.observation)
  log_ratio = numerics.action_log_prob(
    logits, trajectory.action
  ) - numerics.action_log_prob(trajectory.old_logits, trajectory.action)
  return logits, losses.stale_weight(
    dimensions.total(log_ratio, trajectory.reward),
    options.stale_correction,
    options.stale_ratio,
  )


def assess(
  setup: Setup,
  before: Mapping[str, types.Params],
  params: Mapping[str, types.Params],
  batch: data.Batch,
) -> types.Metrics:
  """Measures how far the epochs moved the policy.

  Args:
    setup: of the training.
    before: parameters by part, before the epochs.
    params: the same after them.
    batch: [T, N], this device's share.

  Returns:
    Metrics over all devices.
  """
  logits = setup.actor_critic.policy(params["policy"], batch.observation)
  metrics = numerics.across_devices(
    {
      "kl_old_new": numerics.average(
        dimensions.total(
          losses.kl_divergence(batch.old_logits, logits), batch.advantage
        )
      ),
      "target_residual_after": numerics.average(
        diagnostics.target_residual(batch.target_logits, logits)
      ),
    }
  )
  if setup.options.diagnostics:
    metrics |= loss_geometry.measure_loss(setup.policy_loss, logits, batch)
    metrics |= loss_geometry.measure_gradients(
      make_objective(setup), before, params, batch
    )
  return metrics


def _make_collection(setup: Setup):
  """(init_actor, collect) of a Training."""
  if setup.on_host:
    return lambda keys: None, None
  collect = rollout.make_collect(
    setup.environment,
    make_policy(setup),
    setup.options.num_steps,
    setup.options.reward_noise,
    setup.return_discount,
  )
  return (
    lambda keys: rollout.start(setup.environment, keys, setup.return_discount),
    lambda params, actor, keys: collect(memory.acting(params), actor, keys),
  )


def summarize_episodes(trajectory: data.Trajectory) -> types.Metrics:
  """Summarises return and length of the episodes that ended in a rollout.

  Args:
    trajectory: [T, N], this device's share.

  Returns:
    Mean, minimum and maximum over all devices' episodes, NaN if none ended, and
    their number.
  """
  done = trajectory.done
  count = numerics.psum(jnp.sum(done), DATA_AXIS)
  metrics = {"episodes": count.astype(jnp.float32)}
  for name, values in (
    ("episode_return", trajectory.episode_return),
    ("episode_length", trajectory.episode_length.astype(jnp.float32)),
  ):
    total = numerics.psum(jnp.sum(jnp.where(done, values, 0.0)), DATA_AXIS)
    least = jnp.min(values, where=done, initial=jnp.inf)
    most = jnp.max(values, where=done, initial=-jnp.inf)
    statistics = {
      "mean": total / jnp.maximum(count, 1),
      "min": numerics.pmin(least, DATA_AXIS),
      "max": numerics.pmax(most, DATA_AXIS),
    }
    for statistic, value in statistics.items():
      metrics[f"{name}_{statistic}"] = jnp.where(count > 0, value, jnp.nan)
  return metrics
