"""Random texts of many scripts."""

import random

# First and last characters of blocks of letters, digits and signs.
_BLOCKS = (
  (0x21, 0x7E),
  (0x61, 0x7A),
  (0x61, 0x7A),
  (0xC0, 0x17F),
  (0x370, 0x3FF),
  (0x410, 0x44F),
  (0x5D0, 0x5EA),
  (0x620, 0x64A),
  (0x904, 0x939),
  (0xE01, 0xE30),
  (0x10D0, 0x10F0),
  (0x13A0, 0x13F4),
  (0x3041, 0x3096),
  (0x4E00, 0x4FFF),
  (0xAC00, 0xACFF),
  (0x1F600, 0x1F64F),
)
_BETWEEN = (" ", " ", " ", "  ", "\n", "\n\n", "\t", ", ", "<tag>", "   ", "")


def make_texts(count: int, seed: int) -> list[str]:
  """Makes texts of words, each of one script, with spaces of all kinds."""
  rng = random.Random(seed)
  return [_make_text(rng) for _ in range(count)]


def _make_text(rng: random.Random) -> str:
  parts = []
  for _ in range(rng.randint(1, 8)):
    first, last = rng.choice(_BLOCKS)
    # Few characters, so that some pairs are frequent.
    span = min(last - first, rng.choice((5, 30, 600)))
    parts += [
      "".join(
        chr(first + rng.randint(0, span)) for _ in range(rng.randint(1, 6))
      ),
      rng.choice(_BETWEEN),
    ]
  return "".join(parts)
