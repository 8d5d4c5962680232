"""Computes algorithms' expected updates exactly in a three-armed bandit.

python -m experiments.exact_laboratory --out=DIR

Writes figures of the policies' paths on the simplex from several starts and of
the gradient norms along a descent. Writes tables of each first update's bias
and variance against the true policy gradient, and of a single draw's effect by
the sign of its advantage and the action's probability.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.common import command_line
from lco_jax import algorithms, laboratory, losses
from lco_jax.reporting import simplex, tables

_OUT = flags.DEFINE_string("out", None, "Directory to write to.")
flags.mark_flag_as_required("out")
_BETA = flags.DEFINE_float("beta", 1.0, "KL strength of the optimal target.")

_REWARDS = (1.0, 0.5, 0.0)
# Initial probabilities: uniform, mostly second best, mostly worst action.
_STARTS = ((1 / 3, 1 / 3, 1 / 3), (0.02, 0.96, 0.02), (0.01, 0.04, 0.95))
# Probabilities at which to measure the first update.
_UNEVEN = (0.1, 0.6, 0.3)
# {label: (algorithm, options, whether the target uses all advantages)}.
_LOSSES = {
  "lco_mse": ("lco_mse", {}, False),
  "lco_lch": ("lco_lch", {}, False),
  "lco_kld": ("lco_kld", {}, False),
  "lco_mse, dense": ("lco_mse", {}, True),
  "lco_lch, dense": ("lco_lch", {}, True),
  "lco_kld, dense": ("lco_kld", {}, True),
  "lco_fisher": ("lco_fisher", {}, False),
  "lco_proximal_kl": ("lco_proximal_kl", {}, False),
  "lco_residual": ("lco_residual", {}, False),
  "ppo": ("ppo", {}, False),
  "reinforce": ("reinforce", {}, False),
  "mdpo": ("mdpo", {}, False),
}
_ABLATIONS = {
  "lco_mse, current anchor": ("lco_mse", {"anchor": "current"}, False),
  "lco_kld, weighted": ("lco_kld", {"max_importance_weight": 1e6}, False),
}
_RATE, _UPDATES, _EPOCHS = 0.5, 60, 8
# Probabilities and advantages of the drawn action.
_DRAWN, _ADVANTAGES = (0.02, 0.33, 0.9), (1.0, -1.0)


def main() -> None:
  """Writes the figures and prints and writes the tables."""
  if not 0 < _BETA.value < float("inf"):
    raise command_line.ScriptError(
      f"--beta must be positive and finite, got {_BETA.value}"
    )
  out = pathlib.Path(_OUT.value)
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise command_line.ScriptError(f"--out {out}: {error}") from error
  with jax.enable_x64(True):
    _run(out)


def _run(out: pathlib.Path) -> None:
  rewards = jnp.array(_REWARDS)
  starts = jnp.log(jnp.array(_STARTS))

  def path(row, start, num_updates, num_epochs):
    name, options, dense = row
    return laboratory.expected_path(
      algorithms.make_policy_loss(name, **options),
      start,
      rewards,
      beta=_BETA.value,
      learning_rate=_RATE,
      num_updates=num_updates,
      num_epochs=num_epochs,
      dense=dense,
    )

  simplex.save_paths(
    out / "simplex.png",
    {
      name: np.asarray(
        jax.nn.softmax(
          jax.vmap(lambda s, row=row: path(row, s, _UPDATES, _EPOCHS)[0])(
            starts
          )
        )
      )
      for name, row in _LOSSES.items()
    },
    _REWARDS,
    f"Expected updates: {_UPDATES} × {_EPOCHS} steps of {_RATE:g},"
    f" β = {_BETA.value:g} (○ start, ★ end)",
  )
  every = _LOSSES | _ABLATIONS
  simplex.save_gradient_norms(
    out / "gradient_norms.png",
    {
      name: np.asarray(path(row, starts[1], 1, 200)[1])
      for name, row in every.items()
      if name != "lco_kld, weighted"
    },
    "Gradient descent on one target",
  )
  rows = []
  for label, (name, options, dense) in every.items():
    found = laboratory.moments(
      algorithms.make_policy_loss(name, **options),
      jnp.log(jnp.array(_UNEVEN)),
      rewards,
      _BETA.value,
      dense,
    )
    noise = jnp.sqrt(found.variance) / jnp.linalg.norm(found.mean)
    rows.append(
      {
        "first update": label,
        "cosine": f"{found.cosine:.3f}",
        "scale": f"{found.scale:.3g}",
        "noise": f"{noise:.3f}",
      }
    )
  table = tables.format_markdown(rows)
  (out / "moments.md").write_text(table + "\n")
  print(table)
  print(
    "cosine and scale: of the expected update against the true gradient;"
    " noise: its standard deviation over its length\n"
  )
  table = tables.format_markdown(
    [
      {"one draw": label, **_descend_on_draws(name, options)}
      for label, (name, options, dense) in every.items()
      if not dense
    ]
  )
  (out / "signs.md").write_text(table + "\n")
  print(table)
  print(
    f"change of log π(a) and of the entropy, nats, after {_EPOCHS} steps of"
    f" {_RATE:g}; p: probability of the action before\n"
  )
  print(f"pictures: {out / 'simplex.png'}, {out / 'gradient_norms.png'}")


def _descend_on_draws(name: str, options: dict) -> dict[str, str]:
  """Computes {"A, p": "change of log π(a) and entropy"} of drawing action 0."""
  row = {}
  for advantage in _ADVANTAGES:
    for drawn in _DRAWN:
      rest = (1 - drawn) / 2
      before = jnp.log(jnp.array([drawn, rest, rest]))
      after = laboratory.descend_on_draw(
        algorithms.make_policy_loss(name, **options),
        before,
        0,
        advantage,
        beta=_BETA.value,
        learning_rate=_RATE,
        num_steps=_EPOCHS,
      )
      likelier = jax.nn.log_softmax(after)[0] - before[0]
      opener = losses.entropy(after) - losses.entropy(before)
      row[f"{advantage:+g}, {drawn:g}"] = f"{likelier:+.2f} {opener:+.2f}"
  return row


if __name__ == "__main__":
  command_line.run(main)
