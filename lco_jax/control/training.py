"""Control: the functions that make a `Training` of an environment."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from lco_jax import (
  advantages,
  checks,
  diagnostics,
  environments,
  losses,
  numerics,
  targets,
  types,
)
from lco_jax.algorithms import policy_losses
from lco_jax.control import data, rollout
from lco_jax.training import loss_geometry, program, update

Array = jax.Array
DEVICE_AXIS = numerics.DEVICE_AXIS

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


def make_training(
  environment: environments.Environment | environments.HostEnvironment,
  networks,
  objective: update.Objective,
  optimizers: Mapping[str, optax.GradientTransformation],
  *,
  num_envs: int,
  num_steps: int,
  num_epochs: int,
  num_minibatches: int,
  discount: float,
  gae_lambda: float,
  beta: float,
  nonpositive_beta_multiple: float = 1.0,
  normalize_advantages: bool = True,
  dual_bound: float | None = None,
  reward_noise: float = 0.0,
  max_kl: float | None = None,
  looked_at: policy_losses.PolicyLoss | None = None,
) -> program.Training:
  """Builds the training of an actor-critic.

  Args:
    environment: the environment; from one on the host the training has no
      `collect`, see host_rollout.
    networks: its ActorCritic.
    objective: from `objectives.make_objective`.
    optimizers: for the parts "policy" and "value".
    num_envs: environments over all devices.
    num_steps: steps that a rollout takes in each environment.
    num_epochs: passes over each rollout.
    num_minibatches: minibatches of each pass, a divisor of num_steps.
    discount: γ in [0, 1].
    gae_lambda: λ in [0, 1].
    beta: KL strength of the optimal target, positive and finite.
    nonpositive_beta_multiple: factor on β where the advantage is ≤ 0.
    normalize_advantages: whether a rollout's advantages are brought to mean 0
      and variance 1.
    dual_bound: ε of V-MPO's weights, > 0, nats, which then take the place of
      advantages; None for advantages.
    reward_noise: standard deviation of noise on every reward that is learned
      from, ≥ 0; for environments in the graph.
    max_kl: KL of a minibatch at which the policy's epochs stop, > 0, nats; the
      objective must measure it. None for none.
    looked_at: the policy loss whose geometry is logged; None for none.

  Raises:
    ValueError: if a number is out of range.
  """
  for name, value in (("discount", discount), ("gae_lambda", gae_lambda)):
    if not 0 <= value <= 1:
      raise ValueError(f"{name} must be in [0, 1], got {value}")
  for name, value in (
    ("beta", beta),
    ("nonpositive_beta_multiple", nonpositive_beta_multiple),
  ):
    if not 0 < value < float("inf"):
      raise ValueError(f"{name} must be positive and finite, got {value}")

  if dual_bound is not None:
    checks.check_number("dual_bound", dual_bound, above=0.0)
  checks.check_number("reward_noise", reward_noise, at_least=0.0)
  if reward_noise and isinstance(environment, environments.HostEnvironment):
    raise ValueError("reward_noise: for environments in the graph alone")
  init_actor, collect = _collection(
    environment, networks.policy, num_steps, reward_noise
  )

  def prepare(params, trajectory, completed):
    del completed
    values, next_values = networks.value(
      params["value"],
      jnp.stack([trajectory.observation, trajectory.next_observation]),
    )
    advantage = advantages.generalized_advantage_estimation(
      trajectory.reward,
      values,
      next_values,
      trajectory.terminated,
      trajectory.done,
      discount,
      gae_lambda,
    )
    value_target = advantage + values
    if normalize_advantages:
      mean, variance = diagnostics.moments(advantage, DEVICE_AXIS)
      advantage = advantages.normalized(advantage, mean, variance)
    old_logits = trajectory.behaviour_logits
    target_logits = targets.optimal_logits(
      old_logits,
      advantages.sampled(advantage, trajectory.action, environment.num_actions),
      targets.sign_dependent_beta(advantage, beta, nonpositive_beta_multiple),
    )
    if dual_bound is not None:
      advantage = losses.vmpo_weights(
        advantage, dual_bound, axis_name=DEVICE_AXIS
      )
    batch = data.Batch(
      observation=trajectory.observation,
      action=trajectory.action,
      advantage=advantage,
      old_logits=old_logits,
      old_log_prob=numerics.action_log_prob(old_logits, trajectory.action),
      target_logits=target_logits,
      old_value=values,
      value_target=value_target,
    )
    metrics = episode_metrics(trajectory) | numerics.across_devices(
      {
        "entropy": numerics.average(losses.entropy(old_logits)),
        "target_residual_before": numerics.average(
          diagnostics.target_residual(target_logits, old_logits)
        ),
      }
    )
    metrics["explained_variance"] = diagnostics.explained_variance(
      values, value_target, DEVICE_AXIS
    )
    return batch, metrics

  def assess(before, params, batch):
    logits = networks.policy(params["policy"], batch.observation)
    metrics = numerics.across_devices(
      {
        "kl_old_new": numerics.average(
          losses.kl_divergence(batch.old_logits, logits)
        ),
        "target_residual_after": numerics.average(
          diagnostics.target_residual(batch.target_logits, logits)
        ),
      }
    )
    if looked_at is not None:
      metrics |= loss_geometry.of_loss(looked_at, logits, batch)
      metrics |= loss_geometry.of_gradients(objective, before, params, batch)
    return metrics

  return program.Training(
    init_params=networks.init,
    init_actor=init_actor,
    collect=collect,
    prepare=prepare,
    update=update.make_update(objective, dict(optimizers)),
    assess=assess,
    optimizers=dict(optimizers),
    headline="episode_return_mean",
    num_streams=num_envs,
    num_steps=num_steps,
    num_epochs=num_epochs,
    num_minibatches=num_minibatches,
    max_kl=max_kl,
    counts=COUNTS,
  )


def _collection(
  environment, policy: types.Apply, num_steps: int, reward_noise: float
):
  """(init_actor, collect) of a Training."""
  if isinstance(environment, environments.HostEnvironment):
    return lambda keys: None, None
  collect = rollout.make_collect(environment, policy, num_steps, reward_noise)
  return (
    lambda keys: rollout.start(environment, keys),
    lambda params, actor, keys: collect(params["policy"], actor, keys),
  )


def episode_metrics(trajectory: data.Trajectory) -> types.Metrics:
  """Return and length of the episodes that ended in a rollout.

  Args:
    trajectory: [T, N], this device's share.

  Returns:
    Mean, minimum and maximum over all devices' episodes, NaN if none ended, and
    their number.
  """
  done = trajectory.done
  count = jax.lax.psum(jnp.sum(done), DEVICE_AXIS)
  metrics = {"episodes": count.astype(jnp.float32)}
  for name, values in (
    ("episode_return", trajectory.episode_return),
    ("episode_length", trajectory.episode_length.astype(jnp.float32)),
  ):
    total = jax.lax.psum(jnp.sum(jnp.where(done, values, 0.0)), DEVICE_AXIS)
    least = jnp.min(values, where=done, initial=jnp.inf)
    most = jnp.max(values, where=done, initial=-jnp.inf)
    statistics = {
      "mean": total / jnp.maximum(count, 1),
      "min": jax.lax.pmin(least, DEVICE_AXIS),
      "max": jax.lax.pmax(most, DEVICE_AXIS),
    }
    for statistic, value in statistics.items():
      metrics[f"{name}_{statistic}"] = jnp.where(count > 0, value, jnp.nan)
  return metrics
