"""Heat maps of scores and collapsed runs, for stability maps."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import patches

from lco_jax.reporting import styles


def save_heat_maps(
  paths: Sequence[pathlib.Path],
  maps: Mapping[str, tuple[np.ndarray, np.ndarray]],
  row_label: str,
  rows: Sequence,
  rates: Sequence[float],
  score_label: str,
  limits: tuple[float, float],
  title: str,
) -> None:
  """Draws the score and the share of collapsed runs of each algorithm.

  Args:
    paths: files to write, PNG or SVG by their suffix.
    maps: {algorithm: (score [rows, rates], share of collapsed runs [rows,
      rates])}.
    row_label: name of the setting that varies over rows.
    rows: values of that setting.
    rates: learning rates.
    score_label: label of the score.
    limits: scores at the ends of the colour scale.
    title: title of the figure.
  """
  figure, axes = styles.make_figure(
    len(maps),
    2,
    figsize=(11, 0.9 + len(maps) * (0.55 + 0.34 * len(rows))),
    dpi=110,
    sharex=True,
    sharey=True,
    squeeze=False,
  )
  scales = (
    ("viridis", *limits, _format_number),
    ("Reds", 0.0, 1.0, "{:.0%}".format),
  )
  for (algorithm, values), panels in zip(maps.items(), axes, strict=True):
    for panel, shown, scale in zip(panels, values, scales, strict=True):
      image = _draw(panel, shown, *scale)
      panel.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
      panel.set_yticks(range(len(rows)), [str(value) for value in rows])
      if algorithm == list(maps)[0]:
        label = score_label if panel is panels[0] else "collapsed runs"
        figure.colorbar(
          image, ax=axes[:, 0 if panel is panels[0] else 1],
          location="top", aspect=50, shrink=0.9, label=label,
        )  # fmt: skip
    panels[0].set_title(algorithm, loc="left", fontsize=11, fontweight="bold")
    panels[0].set_ylabel(row_label)
    # Mark the best cell of each algorithm.
    best = np.unravel_index(np.argmax(values[0]), values[0].shape)
    panels[0].add_patch(
      patches.Rectangle(
        (best[1] - 0.48, best[0] - 0.46), 0.96, 0.92,
        fill=False, edgecolor="#e8590c", linewidth=2.5,
      )
    )  # fmt: skip
  for panel in axes[-1]:
    panel.set_xlabel("learning rate of the policy")
  figure.suptitle(title)
  for path in paths:
    figure.savefig(path)


def _draw(panel, values: np.ndarray, colors: str, low, high, text):
  """Draws a heat map with the value in each cell."""
  image = panel.imshow(
    values, cmap=colors, vmin=low, vmax=high, aspect="auto", origin="lower"
  )
  for (row, column), value in np.ndenumerate(values):
    red, green, blue, _ = image.cmap(image.norm(value))
    light = 0.3 * red + 0.59 * green + 0.11 * blue > 0.55
    panel.text(
      column,
      row,
      text(value),
      ha="center",
      va="center",
      color="black" if light else "white",
      fontsize=10,
    )
  panel.tick_params(length=0)
  return image


def _format_number(value: float) -> str:
  return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
