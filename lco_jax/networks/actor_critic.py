"""Policy and value networks of an environment, without shared parameters."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lco_jax import types
from lco_jax.networks import convolutional, mlp

ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu, "gelu": nn.gelu}

# Channels of the convolution that reads image-like observations.
_CONVOLUTION_FEATURES = 16
# Logit of a choice that does not exist; finite, so that differences are.
_ILLEGAL = -1e9


@dataclasses.dataclass(frozen=True)
class ActorCritic:
  """Policy and value networks as pure functions.

  Attributes:
    init: key → {"policy": parameters, "value": parameters}.
    policy: (policy parameters, observation [..., O]) → logits float32[..., A],
      or [..., D, A] for an action of D dimensions.
    value: (value parameters, observation [..., O]) → value float32[...].
  """

  init: Callable[[types.PRNGKey], dict[str, types.Params]]
  policy: types.Apply
  value: types.Apply


def make_actor_critic(
  observation_shape: Sequence[int],
  num_actions: int | Sequence[int],
  hidden_sizes: Sequence[int],
  activation: str,
  legal: np.ndarray | None = None,
) -> ActorCritic:
  """Builds the networks for an observation shape.

  Observations [H, W, C] first pass a small convolution; others are flattened.
  Initialise one seed at a time, not under vmap: batched orthogonal initialisers
  can deadlock the CPU backend on two cores.

  Args:
    observation_shape: O.
    num_actions: A, or (D, A) for an action of D dimensions.
    hidden_sizes: widths of the hidden layers, positive.
    activation: one of ACTIVATIONS.
    legal: bool[D, A], choices that exist; None where all do. The
      logits of others are so low that their probability is 0.

  Raises:
    ValueError: if the activation is unknown or a width is not positive.
  """
  if activation not in ACTIVATIONS:
    raise ValueError(
      f"activation: unknown {activation!r}; known: {', '.join(ACTIVATIONS)}"
    )
  hidden_sizes = tuple(hidden_sizes)
  if not all(isinstance(size, int) and size >= 1 for size in hidden_sizes):
    raise ValueError(
      f"hidden_sizes must be positive integers, got {hidden_sizes}"
    )
  observation_shape = tuple(observation_shape)
  rank = len(observation_shape)

  def network(num_outputs: int, output_scale: float) -> nn.Module:
    head = (hidden_sizes, num_outputs, ACTIVATIONS[activation], output_scale)
    if rank == 3:
      return convolutional.ConvolutionalNetwork(_CONVOLUTION_FEATURES, *head)
    return mlp.MLP(*head)

  def arrange(observation: Array) -> Array:
    if rank == 3:
      return observation
    leading = observation.shape[: observation.ndim - rank]
    return observation.reshape(*leading, -1)

  logits_shape = tuple(np.atleast_1d(num_actions).tolist())
  policy = network(math.prod(logits_shape), 0.01)
  value = network(1, 1.0)

  def init(key):
    policy_key, value_key = jax.random.split(key)
    example = arrange(jnp.zeros(observation_shape, jnp.float32))
    return {
      "policy": policy.init(policy_key, example),
      "value": value.init(value_key, example),
    }

  def policy_apply(params, observation):
    logits = policy.apply(params, arrange(observation))
    logits = logits.reshape(*logits.shape[:-1], *logits_shape)
    return logits if legal is None else jnp.where(legal, logits, _ILLEGAL)

  def value_apply(params, observation):
    return value.apply(params, arrange(observation))[..., 0]

  return ActorCritic(init, policy_apply, value_apply)
