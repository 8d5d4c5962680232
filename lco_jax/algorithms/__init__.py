"""Algorithms by name: their policy losses, and how they use a batch."""

from lco_jax.algorithms.table import (
  ALGORITHMS,
  CONTROL,
  WEIGHTINGS,
  Algorithm,
  make_policy_loss,
  options_by_name,
  options_of,
)

__all__ = [
  "ALGORITHMS",
  "CONTROL",
  "WEIGHTINGS",
  "Algorithm",
  "make_policy_loss",
  "options_by_name",
  "options_of",
]
