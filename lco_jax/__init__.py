"""Logits Convex Optimization (LCO): stable policy optimisation in JAX.

Importing the package loads the pure core only: targets, advantages, losses and
diagnostics, functions of arrays. Import environments, training loops and
reports from their own modules.

`train`, `train_language` and `train_llm` train policies; `load_policy` reads
them. The decorators `register_environment`, `register_task`,
`register_policy_loss` and `register_reward` add what is your own.

Source: arXiv:2603.00963.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lco_jax import advantages, diagnostics, losses, targets

if TYPE_CHECKING:  # What `__getattr__` finds.
  from lco_jax.algorithms import register as register_policy_loss
  from lco_jax.environments import register as register_environment
  from lco_jax.tasks import register as register_task
  from lco_jax.tasks.rewards import register as register_reward
  from lco_jax.trainers.policy_reading import load_policy
  from lco_jax.trainers.training_calls import train, train_language, train_llm

__all__ = [
  "advantages",
  "diagnostics",
  "load_policy",
  "losses",
  "register_environment",
  "register_policy_loss",
  "register_reward",
  "register_task",
  "targets",
  "train",
  "train_language",
  "train_llm",
]

# {name: (module, name in it)} of what is imported when it is asked for.
_LAZY = {
  "load_policy": ("trainers.policy_reading", "load_policy"),
  "register_environment": ("environments", "register"),
  "register_policy_loss": ("algorithms", "register"),
  "register_reward": ("tasks.rewards", "register"),
  "register_task": ("tasks", "register"),
  "train": ("trainers.training_calls", "train"),
  "train_language": ("trainers.training_calls", "train_language"),
  "train_llm": ("trainers.training_calls", "train_llm"),
}


def __getattr__(name: str) -> Any:
  if name not in _LAZY:
    raise AttributeError(f"module 'lco_jax' has no attribute {name!r}")
  module, own = _LAZY[name]
  return getattr(importlib.import_module(f"lco_jax.{module}"), own)
