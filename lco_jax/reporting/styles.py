"""Figures for files, and lines that colour-blind readers can tell apart."""

from typing import Any

from matplotlib import figure as figure_lib

# Okabe and Ito's colours, https://jfly.uni-koeln.de/color, without yellow,
# which is faint on white, and with a dark grey for black.
COLORS = (
  "#0072b2",
  "#d55e00",
  "#009e73",
  "#cc79a7",
  "#56b4e9",
  "#e69f00",
  "#404040",
)
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))


def line_style(index: int) -> dict[str, object]:
  """Returns the style of a line of a figure, for matplotlib.

  Args:
    index: number of the line; 28 lines differ in colour or dashes.
  """
  dashes = DASHES[index // len(COLORS) % len(DASHES)]
  return {"color": COLORS[index % len(COLORS)], "linestyle": dashes}


def make_figure(
  rows: int = 1,
  columns: int = 1,
  *,
  figsize: tuple[float, float],
  dpi: int = 100,
  **options: Any,
) -> tuple[figure_lib.Figure, Any]:
  """Makes a figure for `savefig`, which needs no display.

  It is none of pyplot's: a notebook that calls this library keeps its own way
  to show figures.

  Args:
    rows: of panels.
    columns: of panels.
    figsize: (width, height), inches.
    dpi: dots per inch.
    **options: of `Figure.subplots`.

  Returns:
    (figure, its axes, one or an array, as of `matplotlib.pyplot.subplots`).
  """
  figure = figure_lib.Figure(figsize=figsize, dpi=dpi, layout="constrained")
  return figure, figure.subplots(rows, columns, **options)
