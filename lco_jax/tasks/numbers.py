r"""Numbers in texts: one reading of them for all verifiers.

Reads integers, decimals, fractions, mixed numbers, powers of ten and percent,
as people and LaTeX write them: 1,234.5, −7, - 7, .5, 3/4, 1 3/4, \frac{3}{4},
½, 1e-3, 2 × 10^3, $5, 50%, 5 kg. A number that is part of something else is not
read: of a word (x2, 3D), a date, a time, a version, a root, a power other than
of ten, or a product with a letter (3x). If the text has a \boxed{...}, the last
one alone is read.
"""

import dataclasses
import re
import unicodedata
from fractions import Fraction

# Numbers that differ by less, relatively, are equal, unless both are integers.
_TOLERANCE = Fraction(1, 10**6)
# Longer numbers and larger exponents are not read: they cost memory.
_MAX_DIGITS, _MAX_EXPONENT = 100, 400

# Characters before a number among which its sign is looked for.
_NEAR = 100
# LaTeX commands inside each other that are taken apart.
_MAX_DEPTH = 20
_TOO_LONG = re.compile(rf"(?:\d*\.)?\d{{{_MAX_DIGITS + 1},}}(?:\.\d*)?")
# Stands for text whose numbers are not read.
_ELSE = "\N{REPLACEMENT CHARACTER}"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})++(?!,?\d)|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)"
_UNITS = (
  "km|cm|mm|m|kg|mg|g|ms|s|min|hours?|hrs?|h|ml|l|L|ft|in|lbs?|oz|mph"
  "|cents?|USD|EUR|GBP|percent"
)

_CHARACTERS = str.maketrans(
  {
    **dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}\N{SMALL HYPHEN-MINUS}", "-"),
    **dict.fromkeys("\N{HYPHEN}\N{NON-BREAKING HYPHEN}", "-"),
    "\N{FRACTION SLASH}": "/",
    "\N{DIVISION SLASH}": "/",
  }
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")

# How LaTeX writes what has a plain form; applied in order.
_PLAIN_FORMS = tuple(
  (re.compile(pattern), plain)
  for pattern, plain in (
    (r"\\(?:left|right|displaystyle)(?![A-Za-z])", ""),
    (r"\b(?:USD|EUR|GBP)(?=\d)", ""),
    (r"\\(?:begin|end)\s*\{[^{}]*\}", " "),
    (r"\{,\}|\\!,|,\\!", ","),
    (r"(?<=\d)\\,(?=\d{3}(?!\d))", ","),
    (r"\{-\}", "-"),
    (r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r" \1 "),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])", "°"),
    (r"\\(?:times|cdot)(?![A-Za-z])", "×"),
    (rf"(?<=[\d\s])({_UNITS})\s*\^\s*\{{?\s*[23]\s*\}}?", r"\1"),
    (r"\\(?:approx|quad|qquad|[,;:!() \[\]])", " "),
    (r"\\([$%#&_])", r"\1"),
    (rf"\\[dtc]?frac\s*{{\s*-\s*({_DIGITS})\s*}}", r"-\\frac{\1}"),
    (rf"\\[dtc]?frac(\s*{{\s*{_DIGITS}\s*}}\s*{{)\s*-", r"-\\frac\1"),
    (
      rf"\\[dtc]?frac\s*{{\s*({_DIGITS})\s*}}\s*{{\s*({_DIGITS})\s*}}",
      r" \1/\2 ",
    ),
    (r"\\[dtc]?frac\s*(\d)\s*(\d)(?!\d)", r" \1/\2 "),
  )
)
# Powers of ten as exponents.
_POWERS_OF_TEN = (
  (
    re.compile(
      rf"({_DECIMAL})\s*[×x*·]\s*10\s*\^\s*[{{(]?\s*([-+]?\d+)\s*[}})]?"
    ),
    r"\1e\2",
  ),
  (
    re.compile(r"(?<![\w.,])10\s*\^\s*[{(]?\s*([-+]?\d+)\s*[})]?"),
    r"1e\1",
  ),
)
# LaTeX commands with arguments, roots with the number that they multiply.
_COMMAND = re.compile(
  rf"(?:{_DECIMAL}\s*(?=\\sqrt))?"
  r"\\[A-Za-z]+(?:\s*\[[^\[\]]*\])?(?:\s*\{[^{}]*\})+"
)
# Symbols and functions that stand for a number.
_SYMBOLS = (
  r"(?:√|π|\\(?:sqrt|pi|theta|alpha|beta|gamma|lambda|mu|omega|phi|infty"
  r"|log|ln|exp|sin|cos|tan)(?![A-Za-z]))"
)
# Text whose numbers are parts of something else; applied in order.
_PARTS = tuple(
  re.compile(pattern)
  for pattern in (
    r"(?<!\w)\w{1,20}://\S+",
    rf"(?:{_DECIMAL}[ \t]*)?{_SYMBOLS}(?:\s*{_DECIMAL})?",
    # Powers and indices.
    r"(?:(?<![\w.])[\w.]{1,99}|[)\]}])\s*[\^_]\s*"
    r"(?:\{[^{}]*\}|\([^()]*\)|[-+]?\w+)",
    # Quotients of several numbers, versions, addresses, dates and times.
    rf"{_DECIMAL}(?:\s*/\s*{_DECIMAL}){{2,}}",
    r"\d+(?:\.\d+){2,}",
    r"(?<!\d)\d{1,4}([-/])\d{1,2}\1\d{1,4}(?!\d)",
    r"\d+(?::\d+)+",
    # Words that begin with letters.
    r"(?<![\w.])[^\W\d]\w*-\d\w*(?:[.,]\w+)*",
    r"(?<![\w.])[^\W\d]\w*\d\w*(?:\.\d+)*",
    # Digits that go on as a word, and what they divide.
    rf"(?:{_DECIMAL}\s*/\s*)?(?!{_DECIMAL}(?:{_UNITS})\b)"
    rf"(?!{_DECIMAL}[eE][-+]?\d+\b){_DECIMAL}[^\W\d]\w*",
    rf"{_DECIMAL}-[^\W\d]\w*",
  )
)
_NUMBER = re.compile(
  rf"""
  (?<![\w./])(?:
    (?:(?P<whole>\d+)\s+)?
    (?P<top>{_DECIMAL})\s*/\s*(?P<sign>-?)(?P<bottom>{_DECIMAL})(?!\s*/)
    | (?P<decimal>{_DECIMAL})(?:[eE](?P<exponent>[-+]?\d+))?
  )
  (?P<percent>\s*(?:%|percent\b))?
  """,
  re.VERBOSE,
)
# A minus before a number; a currency or a bracket may stand between them.
_MINUS = re.compile(r"-([ \t]*)[$€£¥₹(]?[ \t]*$|[$€£¥₹]()-$")


@dataclasses.dataclass(frozen=True)
class Number:
  """A number in a text.

  Attributes:
    value: its value; of 50%, 50.
    is_percent: whether a percent sign follows.
    text: plain digits, such as -1234.5 or 3/4.
  """

  value: Fraction
  is_percent: bool
  text: str


def find_last(text: str) -> Number | None:
  """Finds a text's last number; None if it has none."""
  boxed = find_boxed(text)
  plain = _make_plain(text if boxed is None else boxed)
  for match in reversed(list(_NUMBER.finditer(plain))):
    found = _read(plain, match)
    if found is not None:
      return found
  return None


def are_equal(one: Number, other: Number) -> bool:
  """Whether two numbers are equal.

  Integers are if they are the same, others if they differ by at most 1e-6,
  relatively. 50% equals 50 and .5: some leave the sign out.
  """
  if _are_close(one.value, other.value):
    return True
  if one.is_percent == other.is_percent:
    return False
  return _are_close(_as_share(one), _as_share(other))


def find_boxed(text: str) -> str | None:
  r"""Finds the content of the last \boxed{...}; None without one.

  One that is empty or not closed does not count.
  """
  opened, ends = [], {}
  for place, character in enumerate(text):
    if character == "{":
      opened.append(place)
    elif character == "}" and opened:
      ends[opened.pop()] = place
  for match in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*{", text))):
    begin = match.end()
    content = text[begin : ends.get(begin - 1, begin)]
    if content.strip():
      return content
  return None


def _as_share(number: Number) -> Fraction:
  return number.value / 100 if number.is_percent else number.value


def _are_close(one: Fraction, other: Fraction) -> bool:
  if one.denominator == other.denominator == 1:
    return one == other
  return abs(one - other) <= _TOLERANCE * max(abs(one), abs(other))


def _make_plain(text: str) -> str:
  """Writes numbers plainly and replaces text whose numbers are not read."""
  text = re.sub(
    "[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+",
    lambda match: "^{" + match[0].translate(_SUPERSCRIPTS) + "}",
    text,
  )
  # Of compatibility characters, "1½" must not become "11/2".
  text = "".join(
    f" {c}" if unicodedata.decomposition(c).startswith("<fraction>") else c
    for c in text
  )
  # Narrow spaces separate thousands.
  text = re.sub(
    r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))|(?<=\d)[_'’](?=\d{3}(?!\d))",
    ",",
    text,
  )
  text = unicodedata.normalize("NFKC", text).translate(_CHARACTERS)
  text = re.sub(r"(?![0-9])\d", lambda match: str(int(match[0])), text)
  text = _TOO_LONG.sub(_ELSE, text)
  for pattern, plain in (*_PLAIN_FORMS, *_POWERS_OF_TEN):
    text = pattern.sub(plain, text)
  for _ in range(_MAX_DEPTH):
    text, count = _COMMAND.subn(_ELSE, text)
    if not count:
      break
  for pattern in _PARTS:
    text = pattern.sub(_ELSE, text)
  return re.sub(r"\\[A-Za-z]+", " ", text)  # Of relations and the like.


def _read(text: str, match: re.Match) -> Number | None:
  """Reads a match of _NUMBER; None if it is too large, or divides by 0."""
  parts = match.groupdict()
  if len(match[0]) > 10 * _MAX_DIGITS:  # With its commas or spaces.
    return None
  if parts["top"] is None:
    if abs(int(parts["exponent"] or 0)) > _MAX_EXPONENT:
      return None
    digits = parts["decimal"].replace(",", "")
    digits = f"0{digits}" if digits.startswith(".") else digits
    if parts["exponent"]:
      digits += f"e{int(parts['exponent'])}"
    value = Fraction(digits)
  else:
    top, bottom = (
      Fraction(parts[name].replace(",", "")) for name in ("top", "bottom")
    )
    if not bottom:
      return None
    value = top / bottom + int(parts["whole"] or 0)
    value = -value if parts["sign"] else value
    digits = str(value)
  if _has_minus(text[max(0, match.start() - _NEAR) : match.start()]):
    value = -value
    digits = digits[1:] if digits.startswith("-") else f"-{digits}"
  return Number(value, parts["percent"] is not None, digits)


def _has_minus(before: str) -> bool:
  """Whether the text before a number ends with its sign.

  A minus with space on both sides is a sign unless a number, a bracket or a
  single letter is before it: that is a difference.
  """
  minus = _MINUS.search(before)
  if minus is None:
    return False
  line = before[: minus.start()].rsplit("\n", 1)[-1]
  words = line.rstrip(" \t")
  if words and words == line:
    return not re.search(rf"[\w)\]}}%°.{_ELSE}]$", words)
  if not (minus[1] or minus[0][-1] in " \t"):
    return True
  return not re.search(rf"[\d)\]}}%°{_ELSE}]$|(?<![^\W\d_])[^\W\d_]$", words)
