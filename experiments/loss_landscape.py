"""Draws losses along one logit: PPO has plateaus, LCO does not.

python -m experiments.loss_landscape --output=docs/landscape.png
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.common import command_line
from lco_jax import losses, numerics, targets
from lco_jax.reporting import landscape

_OUTPUT = flags.DEFINE_string("output", None, "PNG file to write.")
flags.mark_flag_as_required("output")


def main() -> None:
  """Evaluates each loss on two actions, the first sampled with A = +1."""
  old_logits = jnp.array([-1.0, 0.0])
  target = targets.optimal_logits(old_logits, jnp.array([1.0, 0.0]), 1.0)
  old_log_prob = numerics.action_log_prob(old_logits, jnp.array(0))

  def ppo(logits):
    log_prob = numerics.action_log_prob(logits, jnp.array(0))
    return losses.ppo_clip_loss(
      log_prob, old_log_prob, jnp.array(1.0), 0.2, 0.2
    )

  functions = {
    "PPO": ppo,
    "LCO-MSE": lambda z: losses.lco_mse_loss(z, target),
    "LCO-LCH": lambda z: losses.lco_lch_loss(z, target),
    "LCO-KLD": lambda z: losses.lco_kld_loss(z, target),
  }
  logit = jnp.linspace(-4.0, 2.5, 400)
  logits = jnp.stack([logit, jnp.zeros_like(logit)], axis=-1)
  curves = {}
  for name, function in functions.items():
    loss, gradient = jax.vmap(jax.value_and_grad(function))(logits)
    curves[name] = (np.asarray(loss - loss.min()), np.asarray(gradient[:, 0]))
  try:
    landscape.save_landscape(
      pathlib.Path(_OUTPUT.value), np.asarray(logit), curves, -1.0, 0.0
    )
  except OSError as error:
    raise command_line.ScriptError(f"output: {error}") from error


if __name__ == "__main__":
  command_line.run(main)
