"""Rotary positions as files give them: base, scaling for longer texts.

All scalings become divisors of the frequencies and one amplitude. Those that
depend on the length of the text, dynamic and longrope, are constant within the
length that the model was trained with, to which texts are limited then.

Source: Peng et al. 2023, arXiv:2309.00071 (yarn, linear, dynamic); Ding et al.
2024, arXiv:2402.13753 (longrope); Llama 3.1's reference code (llama3).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lco_jax.pretrained import entries

_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


class Rotary(NamedTuple):
  """Rotary positions of a model.

  Attributes:
    theta: base of the wavelengths.
    divisors: D / 2 numbers that divide the frequencies; None for 1.
    amplitude: factor of rotated queries and keys.
    context_length: tokens of the longest text.
  """

  theta: float
  divisors: tuple[float, ...] | None
  amplitude: float
  context_length: int


def read(
  config: entries.Entries,
  values: Mapping[str, Any],
  theta: float,
  head_dim: int,
  context_length: int,
  names: Mapping[str, str],
) -> Rotary:
  """Reads rope_parameters or rope_scaling.

  Args:
    config: the whole configuration, for original_max_position_embeddings.
    values: rope_parameters or rope_scaling.
    theta: base of the wavelengths if `values` has none.
    head_dim: D.
    context_length: of the configuration.
    names: {other name of a type: its name}.

  Raises:
    ModelFileError: if the type is not supported or a value is wrong.
  """
  own = entries.Entries(config.path, values)
  given = [key for key in ("rope_type", "type") if own.get(key) is not None]
  kinds = {own.text(key, "default") for key in given}
  if len(kinds) > 1:
    raise own.error(f"rope_type and type differ: {', '.join(sorted(kinds))}")
  kind = kinds.pop() if kinds else "default"
  kind = names.get(kind, kind)
  if kind not in _TYPES:
    raise own.error(f"rope_type {kind!r} is not among {', '.join(_TYPES)}")
  own.require("partial_rotary_factor", 1, 1.0)
  theta = own.positive("rope_theta", theta)
  trained = config.size(
    "original_max_position_embeddings",
    own.size("original_max_position_embeddings", context_length),
  )
  if theta <= 1.0 or trained < 2:
    raise own.error(f"rope_theta {theta} and length {trained} are too small")
  half = head_dim // 2
  frequencies = theta ** -(np.arange(half) / half)
  divisors, amplitude = None, 1.0
  if kind == "linear":
    divisors = np.full(half, own.positive("factor"))
  elif kind == "llama3":
    divisors = _divide_llama3(own, frequencies, trained)
  elif kind == "yarn":
    factor = own.positive("factor", context_length / trained)
    divisors = _divide_yarn(own, theta, half, trained, factor)
    amplitude = own.positive("attention_factor", _amplify_yarn(own, factor))
  elif kind == "longrope":
    short, long = (
      own.numbers(key, half) for key in ("short_factor", "long_factor")
    )
    factor = own.positive("factor", context_length / trained)
    default = 1.0
    if factor > 1.0:
      default = math.sqrt(1 + math.log(factor) / math.log(trained))
    amplitude = own.positive("attention_factor", default)
    divisors = np.array(short)
    if short != long:
      context_length = min(context_length, trained)
  if divisors is not None:
    divisors = tuple(divisors.tolist())
  return Rotary(theta, divisors, amplitude, context_length)


def _divide_llama3(own, frequencies, trained) -> np.ndarray:
  """Long wavelengths are divided, short ones not, those between in part."""
  factor = own.positive("factor")
  low, high = own.positive("low_freq_factor"), own.positive("high_freq_factor")
  if low >= high:
    raise own.error("low_freq_factor is not below high_freq_factor")
  turns = trained * frequencies / (2 * math.pi)
  smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return 1.0 / ((1 - smooth) / factor + smooth)


def _divide_yarn(own, theta, half, trained, factor) -> np.ndarray:
  """Pairs that turn often are not divided, those that turn rarely are."""

  def find_pair(turns):
    # Index of the pair that turns so often within the trained length.
    return half * math.log(trained / (turns * 2 * math.pi)) / math.log(theta)

  low = find_pair(own.positive("beta_fast", 32))
  high = find_pair(own.positive("beta_slow", 1))
  if own.flag("truncate", True):
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, 2 * half - 1)
  if low == high:
    high += 0.001
  ramp = np.clip((np.arange(half) - low) / (high - low), 0.0, 1.0)
  return 1.0 / (ramp / factor + (1 - ramp))


def _amplify_yarn(own, factor: float) -> float:
  def amplify(scale):
    return 1.0 if factor <= 1.0 else 0.1 * scale * math.log(factor) + 1.0

  # 0 is as good as absent.
  scale, all_dim = (
    own.positive(key) if own.get(key) else None
    for key in ("mscale", "mscale_all_dim")
  )
  if scale and all_dim:
    return amplify(scale) / amplify(all_dim)
  return amplify(1.0)
