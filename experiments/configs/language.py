"""Language configurations, e.g. --config=experiments/configs/language.py:TASK.

Settings and defaults are in lco_jax/trainers/configs/language.py.
"""

from lco_jax.trainers.configs.language import get_config as get_config
