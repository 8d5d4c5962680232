"""Verifiers, e.g. --config=experiments/configs/verifier.py:chain_sum.

Settings and defaults are in lco_jax/trainers/configs/verifier.py.
"""

from lco_jax.trainers.configs.verifier import get_config as get_config
