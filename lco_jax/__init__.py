"""Logits Convex Optimization (LCO): stable policy optimisation in JAX.

Importing the package loads the pure core only: targets, advantages, losses and
diagnostics, functions of arrays. Import environments, training loops and
reports from their own modules.

The decorators `register_environment`, `register_task` and
`register_policy_loss` add your own environments, tasks and losses.

Source: arXiv:2603.00963.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lco_jax import advantages, diagnostics, losses, targets

if TYPE_CHECKING:  # What `__getattr__` finds.
  from lco_jax.algorithms import register as register_policy_loss
  from lco_jax.environments import register as register_environment
  from lco_jax.tasks import register as register_task

__all__ = [
  "advantages",
  "diagnostics",
  "losses",
  "register_environment",
  "register_policy_loss",
  "register_task",
  "targets",
]

# Each is `register` of a package, which is imported when it is asked for.
_REGISTRATIONS = {
  "register_environment": "environments",
  "register_task": "tasks",
  "register_policy_loss": "algorithms",
}


def __getattr__(name: str) -> Any:
  if name not in _REGISTRATIONS:
    raise AttributeError(f"module 'lco_jax' has no attribute {name!r}")
  package = importlib.import_module(f"lco_jax.{_REGISTRATIONS[name]}")
  return package.register
