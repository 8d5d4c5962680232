"""Logits Convex Optimization (LCO): stable policy optimisation in JAX.

The pure core is imported here: targets, advantages, losses and diagnostics are
functions of arrays and pull in nothing but jax and chex. Environments,
training loops and reports are imported by their own names.

Source: arXiv:2603.00963.
"""

from lco_jax import advantages, diagnostics, losses, targets

__all__ = ["advantages", "diagnostics", "losses", "targets"]
