"""Policy and value networks of an environment, without shared parameters."""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import types
from lco_jax.networks import convolutional, mlp

ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu, "gelu": nn.gelu}

# Channels of the convolution that reads image-like observations.
_CONVOLUTION_FEATURES = 16


@dataclasses.dataclass(frozen=True)
class ActorCritic:
  """Policy and value networks as pure functions.

  Attributes:
    init: key → {"policy": parameters, "value": parameters}.
    policy: (policy parameters, observation [..., O]) → logits float32[..., A].
    value: (value parameters, observation [..., O]) → value float32[...].
  """

  init: Callable[[types.PRNGKey], dict[str, types.Params]]
  policy: types.Apply
  value: types.Apply


def make_actor_critic(
  observation_shape: Sequence[int],
  num_actions: int,
  hidden_sizes: Sequence[int],
  activation: str,
) -> ActorCritic:
  """Builds the networks for an observation shape.

  Observations [H, W, C] first pass a small convolution; others are flattened.
  Initialise one seed at a time, not under vmap: batched orthogonal initialisers
  can deadlock the CPU backend on two cores.

  Args:
    observation_shape: O.
    num_actions: A.
    hidden_sizes: widths of the hidden layers, positive.
    activation: one of ACTIVATIONS.

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

  policy, value = network(num_actions, 0.01), network(1, 1.0)

  def init(key):
    policy_key, value_key = jax.random.split(key)
    example = arrange(jnp.zeros(observation_shape, jnp.float32))
    return {
      "policy": policy.init(policy_key, example),
      "value": value.init(value_key, example),
    }

  def policy_apply(params, observation):
    return policy.apply(params, arrange(observation))

  def value_apply(params, observation):
    return value.apply(params, arrange(observation))[..., 0]

  return ActorCritic(init, policy_apply, value_apply)
