"""The data that flows through training, and the functions that carry it.

Shapes name their axes: T time steps, N environments, A actions, O the
observation's own axes. Control is time-major.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array
PRNGKey = jax.Array
Params = Any  # A pytree of one network's parameters.
Metrics = dict[str, Array]


class Transition(NamedTuple):
  """What one environment step returns; the environment does not reset itself.

  Attributes:
    state: pytree, the environment's next state.
    observation: float[O], seen in that state, also if the episode ended.
    reward: float[].
    terminated: bool[], the task reached an end: the future is worth nothing.
    truncated: bool[], a time limit cut the episode: the future has a value.
  """

  state: Any
  observation: Array
  reward: Array
  terminated: Array
  truncated: Array


@dataclasses.dataclass(frozen=True)
class Environment:
  """An environment as pure functions of explicit state, one copy at a time.

  Attributes:
    name: the id that it was made by.
    observation_shape: O.
    num_actions: A.
    max_episode_steps: bound on an episode's length.
    reset: key → (state, observation).
    step: (key, state, action int32[]) → Transition.
  """

  name: str
  observation_shape: tuple[int, ...]
  num_actions: int
  max_episode_steps: int
  reset: Callable[[PRNGKey], tuple[Any, Array]]
  step: Callable[[PRNGKey, Any, Array], Transition]


@dataclasses.dataclass(frozen=True)
class HostEnvironment:
  """An environment that Python steps on the host, many copies at a time.

  Attributes:
    name: the id that it was made by.
    observation_shape: O.
    num_actions: A.
    make_copies: number → a gymnasium.vector.VectorEnv of that many copies,
      which resets a copy in the step in which its episode ends.
    encode: observations of B copies as they come → float32[B, O], on the host.
  """

  name: str
  observation_shape: tuple[int, ...]
  num_actions: int
  make_copies: Callable[[int], Any]
  encode: Callable[[np.ndarray], np.ndarray]


def _pytree(cls):
  """A frozen dataclass whose fields are all children of the pytree."""
  return jax.tree_util.register_dataclass(
    dataclasses.dataclass(frozen=True)(cls)
  )


@_pytree
class Trajectory:
  """What a rollout saw, time-major.

  Attributes:
    observation: float[T, N, O].
    action: int32[T, N].
    behaviour_logits: float[T, N, A], of the policy that chose the action.
    reward: float[T, N].
    next_observation: float[T, N, O], the true successor, before any reset.
    terminated: bool[T, N].
    done: bool[T, N], terminated or truncated.
    episode_return: float[T, N], undiscounted return of the episode so far.
    episode_length: int32[T, N], steps of the episode so far.
  """

  observation: Array
  action: Array
  behaviour_logits: Array
  reward: Array
  next_observation: Array
  terminated: Array
  done: Array
  episode_return: Array
  episode_length: Array


@_pytree
class ActorState:
  """What a collector carries from rollout to rollout.

  Attributes:
    environment_state: pytree with leading axis N.
    observation: float[N, O], of the current states.
    episode_return: float[N], of the episodes under way.
    episode_length: int32[N].
  """

  environment_state: Any
  observation: Array
  episode_return: Array
  episode_length: Array


@_pytree
class Batch:
  """What an objective needs of each step; constant during the epochs.

  Attributes:
    observation: float[..., O].
    action: int32[...].
    advantage: float[...], normalised if so configured.
    old_logits: float[..., A], behaviour policy's logits.
    old_log_prob: float[...], behaviour policy's log-probability of the action.
    target_logits: float[..., A], optimal logits z*.
    old_value: float[...], V at collection.
    value_target: float[...], the return that V regresses onto.
  """

  observation: Array
  action: Array
  advantage: Array
  old_logits: Array
  old_log_prob: Array
  target_logits: Array
  old_value: Array
  value_target: Array


@_pytree
class Samples:
  """Completions of prompts: G of each of N, in P and C slots.

  Attributes:
    prompt: int32[G, N, P], padded on the left.
    padding: int32[G, N], slots of the prompt that hold no token.
    action: int32[G, N, C], the completion's tokens.
    mask: bool[G, N, C], those that were chosen, the end included.
    answer: int32[G, N, C], a right answer, its end included.
    logits: float[G, N, C, V], of the policy that chose, before temperature.
    reward: float[G, N].
    correct: bool[G, N], whether the completion solves the problem.
    truncated: bool[G, N], whether it was cut off before its end.
  """

  prompt: Array
  padding: Array
  action: Array
  mask: Array
  answer: Array
  logits: Array
  reward: Array
  correct: Array
  truncated: Array


@_pytree
class TokenBatch:
  """What an objective needs of each completion; constant during the epochs.

  A loss is Σ weight · loss over Σ share: how tokens and sequences count.

  Attributes:
    prompt: int32[..., P], padded on the left.
    padding: int32[...], slots of the prompt that hold no token.
    action: int32[..., C], the completion's tokens.
    mask: bool[..., C], tokens that were chosen; nothing else may matter.
    weight: float[..., C], of a token's loss.
    share: float[...], of a sequence in the sum that losses are divided by.
    advantage: float[..., C].
    old_logits: float[..., C, V], behaviour policy's logits.
    old_log_prob: float[..., C], log π of the token by the policy that sampled,
      before temperature and cuts.
    target_logits: float[..., C, V], optimal logits z*.
    reference_log_prob: float[..., C], the reference policy's of the token.
    value_target: float[..., C], the return that V regresses onto.
  """

  prompt: Array
  padding: Array
  action: Array
  mask: Array
  weight: Array
  share: Array
  advantage: Array
  old_logits: Array
  old_log_prob: Array
  target_logits: Array
  reference_log_prob: Array
  value_target: Array


@_pytree
class TextSamples:
  """Completions of texts, scored on the host: G of each of N, in P and C slots.

  Attributes:
    prompt: int32[G, N, P], padded on the left.
    padding: int32[G, N], slots of the prompt that hold no token.
    action: int32[G, N, C], the completion's tokens.
    mask: bool[G, N, C], those that were chosen, the end included.
    hidden: float[G, N, C, W], final hidden states that chose them.
    log_prob: float[G, N, C], log π of the token by the policy that sampled,
      before temperature and cuts; 0 outside the mask.
    reward: float[G, N].
    correct: bool[G, N], whether the completion solves the problem.
    truncated: bool[G, N], whether it was cut off before its end.
    failed: bool[G, N], whether its verifier took too long, or failed.
    first_visit: bool[G, N], whether the prompt was not met before.
  """

  prompt: Array
  padding: Array
  action: Array
  mask: Array
  hidden: Array
  log_prob: Array
  reward: Array
  correct: Array
  truncated: Array
  failed: Array
  first_visit: Array


@_pytree
class LeanBatch:
  """A TokenBatch that holds nothing over the vocabulary, but can make it.

  Advantages are known of K tokens, and one for all the others.

  Attributes:
    prompt, padding, action, mask, weight, share, advantage, old_log_prob,
      reference_log_prob: as of TokenBatch.
    sampled: bool[..., C], tokens that metrics are of: the mask, and those of
      groups that are left out of it.
    old_hidden: float[..., C, W], the behaviour policy's final hidden states.
    beta: float[..., C], KL strength of the token's target.
    known: int32[..., C, K], tokens whose advantages are known.
    known_advantage: float[..., C, K].
    rest_advantage: float[..., C], of every other token.
  """

  prompt: Array
  padding: Array
  action: Array
  mask: Array
  sampled: Array
  weight: Array
  share: Array
  advantage: Array
  old_log_prob: Array
  reference_log_prob: Array
  old_hidden: Array
  beta: Array
  known: Array
  known_advantage: Array
  rest_advantage: Array


@_pytree
class LearnerState:
  """All that training carries: saving this pytree saves the run.

  Attributes:
    params: {part: parameters}: "policy", "value" and what else a run needs.
    opt_state: {part: optax state}.
    actor: the collector's state, different on every device.
    key: uint32[2], words of the run's PRNG key: a plain array, which can be
      dealt and saved. Randomness is drawn from it, the update's number and the
      environment's global index, so it never changes.
    update: int32[], completed updates.
  """

  params: dict[str, Params]
  opt_state: dict[str, Any]
  actor: Any
  key: Array
  update: Array


class Apply(Protocol):
  """A network: parameters and observations [..., O] to outputs [...]."""

  def __call__(self, params: Params, observation: Array) -> Array:
    """Applies the network to observations with any leading axes."""
    ...
