"""Logits Convex Optimization (LCO): stable policy optimisation in JAX.

Importing the package loads the pure core only: targets, advantages, losses and
diagnostics, functions of arrays. Import environments, training loops and
reports from their own modules.

Source: arXiv:2603.00963.
"""

from lco_jax import advantages, diagnostics, losses, targets

__all__ = ["advantages", "diagnostics", "losses", "targets"]
