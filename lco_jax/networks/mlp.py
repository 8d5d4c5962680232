"""Multilayer perceptron."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array


class MLP(nn.Module):
  """Dense layers with orthogonal weights, then a linear output layer.

  Attributes:
    hidden_sizes: widths of the hidden layers.
    num_outputs: width of the output.
    activation: nonlinearity of the hidden layers.
    output_scale: gain of the output layer's weights; a small gain makes the
      initial policy nearly uniform.
  """

  hidden_sizes: Sequence[int]
  num_outputs: int
  activation: Callable[[Array], Array]
  output_scale: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """float[..., F] → float32[..., num_outputs]."""
    for size in self.hidden_sizes:
      hidden = nn.Dense(size, kernel_init=nn.initializers.orthogonal(2**0.5))
      x = self.activation(hidden(x))
    output = nn.Dense(
      self.num_outputs,
      kernel_init=nn.initializers.orthogonal(self.output_scale),
    )
    return output(x).astype(jnp.float32)
