"""Control configurations, e.g. --config=experiments/configs/control.py:ID.

Settings and defaults are in lco_jax/trainers/configs/control.py.
"""

from lco_jax.trainers.configs.control import get_config as get_config
