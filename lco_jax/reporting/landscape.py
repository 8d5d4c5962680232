"""Figure of losses along one logit, convex or not."""

import pathlib
from collections.abc import Mapping

import numpy as np

from lco_jax.reporting import styles

_COLORS = {
  "PPO": "#c0392b",
  "LCO-MSE": "#2563a8",
  "LCO-LCH": "#2e8b57",
  "LCO-KLD": "#8e5ea2",
}


def save_landscape(
  path: pathlib.Path,
  logit: np.ndarray,
  curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
  start: float,
  target: float,
) -> None:
  """Draws losses and their slopes side by side.

  Args:
    path: PNG file to write.
    logit: float[points], values of the logit.
    curves: {name: (loss [points], slope [points])}.
    start: logit of the behaviour policy.
    target: logit of the optimal policy.
  """
  figure, panels = styles.make_figure(1, 2, figsize=(9.0, 3.4), dpi=120)
  for index, (axes, label) in enumerate(
    zip(panels, ("loss", "slope: what pulls the logit"), strict=True)
  ):
    for name, values in curves.items():
      axes.plot(
        logit, values[index], label=name, color=_COLORS[name], linewidth=2
      )
    for at, text in ((start, "π_old"), (target, "π*")):
      axes.axvline(at, color="gray", linewidth=0.8, linestyle=":")
      axes.annotate(
        text,
        (at, 1.0),
        xycoords=("data", "axes fraction"),
        ha="center",
        va="bottom",
        color="gray",
      )
    axes.set_xlabel("logit of the sampled action (A = +1, β = 1)")
    axes.set_ylabel(label)
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
  panels[0].legend(frameon=False)
  figure.savefig(path)
