"""A small convolutional network for image-like observations."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from lco_jax.networks import mlp


class ConvolutionalNetwork(nn.Module):
  """One 3×3 convolution and an MLP, sized for MinAtar's 10×10 boards.

  Attributes:
    features: channels of the convolution.
    hidden_sizes: widths of the MLP's hidden layers.
    num_outputs: width of the output.
    activation: nonlinearity.
    output_scale: gain of the output layer's weights.

  Source: Young & Tian 2019, arXiv:1903.03176 (MinAtar).
  """

  features: int
  hidden_sizes: Sequence[int]
  num_outputs: int
  activation: Callable[[Array], Array]
  output_scale: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """float[..., H, W, C] → float32[..., num_outputs]."""
    # Compute the convolution as a dense layer on 3×3 patches: nn.Conv vmapped
    # over seeds is a grouped convolution, which CPUs run many times slower.
    height, width = x.shape[-3] - 2, x.shape[-2] - 2
    patches = [
      x[..., row : row + height, column : column + width, :]
      for row in range(3)
      for column in range(3)
    ]
    x = nn.Dense(self.features)(jnp.concatenate(patches, axis=-1))
    x = self.activation(x)
    x = x.reshape(*x.shape[:-3], -1)
    return mlp.MLP(
      self.hidden_sizes, self.num_outputs, self.activation, self.output_scale
    )(x)
