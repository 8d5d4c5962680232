"""Figures of the exact laboratory: policy paths and gradient norms."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import patches

from lco_jax.reporting import styles

# Corners of the triangle, one per action, the best action on top.
_CORNERS = np.array([[0.5, np.sqrt(0.75)], [0.0, 0.0], [1.0, 0.0]])
_COLORS = ("#2563a8", "#c0392b", "#2e8b57", "#8e5ea2")


def save_paths(
  path: pathlib.Path,
  paths: Mapping[str, Sequence[np.ndarray]],
  rewards: Sequence[float],
  title: str,
) -> None:
  """Draws each loss's paths of a policy over three actions.

  Args:
    path: PNG file to write.
    paths: {loss: probabilities [steps, 3] from each start}.
    rewards: rewards of the three actions, the best first.
    title: title of the figure.
  """
  columns = min(3, len(paths))
  rows = -(-len(paths) // columns)
  figure, panels = styles.make_figure(
    rows,
    columns,
    figsize=(3.4 * columns, 3.3 * rows),
    dpi=110,
    squeeze=False,
  )
  for panel in panels.flat:
    panel.axis("off")
  for panel, (name, own) in zip(panels.flat, paths.items(), strict=False):
    panel.add_patch(patches.Polygon(_CORNERS, fill=False, color="gray"))
    for corner, reward, above in zip(
      _CORNERS, rewards, (True, False, False), strict=True
    ):
      panel.annotate(
        f"reward {reward:g}",
        corner,
        xytext=(0, 4 if above else -12),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color="gray",
      )
    for probabilities, color in zip(own, _COLORS, strict=False):
      x, y = (np.asarray(probabilities) @ _CORNERS).T
      panel.plot(x, y, color=color, linewidth=1.6)
      panel.plot(x[0], y[0], "o", color=color, markersize=5)
      panel.plot(x[-1], y[-1], "*", color=color, markersize=12)
    panel.set_aspect("equal")
    panel.margins(0.08)
    panel.set_title(name, fontweight="bold", fontsize=11)
  figure.suptitle(title)
  figure.savefig(path)


def save_gradient_norms(
  path: pathlib.Path, norms: Mapping[str, np.ndarray], title: str
) -> None:
  """Draws the gradient norm of each loss along its own descent.

  Args:
    path: PNG file to write.
    norms: {loss: norms [steps]}, drawn relative to the first norm.
    title: title of the figure.
  """
  figure, axes = styles.make_figure(figsize=(8.4, 4.2), dpi=120)
  for index, (name, own) in enumerate(norms.items()):
    relative = np.maximum(own / own[0], 1e-9)
    # Thinner and thinner, so that curves that coincide are seen.
    width = 5 - 3.8 * index / len(norms)
    axes.plot(relative, label=name, linewidth=width, **styles.line_style(index))
  axes.axhline(1.0, color="gray", linewidth=0.8, linestyle=":")
  axes.set_yscale("log")
  axes.set_ylim(1e-4, None)
  axes.set_xlabel("gradient step on one target")
  axes.set_ylabel("gradient norm, relative to the first")
  axes.set_title(title)
  axes.grid(alpha=0.2)
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
  figure.savefig(path)
