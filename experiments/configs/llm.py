"""Pretrained models, e.g. --config=experiments/configs/llm.py:chain_sum.

Settings and defaults are in lco_jax/trainers/configs/llm.py.
"""

from lco_jax.trainers.configs.llm import get_config as get_config
