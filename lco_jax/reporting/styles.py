"""Colours and dashes that tell lines apart, for colour-blind readers too."""

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
