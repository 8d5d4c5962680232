"""Algorithms by name: policy losses and their use of a batch."""

from lco_jax.algorithms.table import (
  ALGORITHMS,
  CONTROL,
  WEIGHTINGS,
  Algorithm,
  list_options,
  make_policy_loss,
  option_types,
  options_by_name,
  register,
  weigh_steps,
)

__all__ = [
  "ALGORITHMS",
  "CONTROL",
  "WEIGHTINGS",
  "Algorithm",
  "make_policy_loss",
  "option_types",
  "options_by_name",
  "register",
  "list_options",
  "weigh_steps",
]
