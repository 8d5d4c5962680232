"""Whole runs from settings: what the scripts and `lco_jax.train` share."""
