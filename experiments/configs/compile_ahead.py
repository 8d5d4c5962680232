"""Large models to compile for, e.g. compile_ahead.py:llama-3.1-8b.

--config=experiments/configs/compile_ahead.py:SHAPE, SHAPE one of
`pretrained.SHAPES`: 64 prompts × 8 samples of 768 tokens.
"""

import ml_collections

from lco_jax.trainers.configs import llm

# Microbatches of a device's prompts.
_MICROBATCHES = {"llama-3.1-8b": 4, "qwen2.5-7b": 4, "llama-3.1-70b": 1}


def get_config(shape: str = "llama-3.1-8b") -> ml_collections.ConfigDict:
  """Settings of a run.

  Args:
    shape: a key of `pretrained.SHAPES`.
  """
  config = llm.get_config("data")
  config.model = shape
  config.algorithm = "lco_fisher"
  config.num_prompts, config.num_samples = 64, 8
  config.completion_length = 768
  config.dtype, config.rematerialize = "bfloat16", True
  config.num_microbatches = _MICROBATCHES.get(shape, 1)
  return config
