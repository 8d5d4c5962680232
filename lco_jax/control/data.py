"""The data of control: what is collected, and what is learned from.

Shapes name their axes: T time steps, N environments, A actions, O the
observation's own axes. Control is time-major.
"""

from typing import Any

from jax import Array

from lco_jax import types


@types.pytree_dataclass
class Trajectory:
  """A rollout, time-major.

  Attributes:
    observation: float[T, N, O].
    action: int32[T, N], or [T, N, D] for an action of D dimensions.
    old_logits: float[T, N, A], or [T, N, D, A], of the policy that acted.
    reward: float[T, N].
    next_observation: float[T, N, O], the true successor, before any reset.
    terminated: bool[T, N].
    done: bool[T, N], terminated or truncated.
    episode_return: float[T, N], undiscounted return of the episode so far.
    episode_length: int32[T, N], steps of the episode so far.
    discounted_return: float[T, N], Σ γ^(t−j) r_j of the episode so far; None
      unless rewards are normalised.
  """

  observation: Array
  action: Array
  old_logits: Array
  reward: Array
  next_observation: Array
  terminated: Array
  done: Array
  episode_return: Array
  episode_length: Array
  discounted_return: Array | None = None


@types.pytree_dataclass
class ActorState:
  """The state of a collector between rollouts.

  Attributes:
    environment_state: pytree with leading axis N.
    observation: float[N, O], of the current states.
    episode_return: float[N], of the episodes under way.
    episode_length: int32[N].
    discounted_return: float[N], as of Trajectory.
  """

  environment_state: Any
  observation: Array
  episode_return: Array
  episode_length: Array
  discounted_return: Array | None = None


@types.pytree_dataclass
class Batch:
  """The data of steps that an objective reads; constant during the epochs.

  Attributes:
    observation: float[..., O].
    action: int32[...], or [..., D] for an action of D dimensions.
    advantage: float[...], normalised if so configured.
    old_logits: float[..., A], or [..., D, A], behaviour policy's logits.
    old_log_prob: float[...], behaviour policy's log-probability of the action.
    target_logits: of the shape of `old_logits`, optimal logits z*.
    beta: float[...], KL strength of the target.
    old_value: float[...], V at collection.
    value_target: float[...], the return that V regresses onto.
    legal: bool[..., D, A], choices that exist; None where all do.
    stale_weight: float[...], factor on the policy's loss; None for 1.
    dense_advantage: None: only the sampled action's advantage is known.
  """

  observation: Array
  action: Array
  advantage: Array
  old_logits: Array
  old_log_prob: Array
  target_logits: Array
  beta: Array
  old_value: Array
  value_target: Array
  stale_weight: Array | None = None
  dense_advantage: None = None
  legal: Array | None = None
