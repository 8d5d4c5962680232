"""Pretrained models, e.g. --config=experiments/configs/llm.py:chain_sum.

A reasoning-gym task follows the colon, or `data` for rows of your own files.
None stands for the value in `tuned` or for the algorithm's default.
"""

import ml_collections
from ml_collections import config_dict

from lco_jax import algorithms, pretrained
from lco_jax.language import generation, training
from lco_jax.trainers import llm as build
from lco_jax.trainers import settings
from lco_jax.trainers.configs import defaults

# For all algorithms alike; docs/measurements.md has the runs.
_DEFAULT = {
  "policy_learning_rate": 1e-5,
  "beta": 1.0,
  "learning_rate_warmup": 5,  # Less in runs of fewer than 10 steps.
}
# Options that make tasks easier than reasoning-gym's defaults.
_TASK_OPTIONS = {
  "chain_sum": "min_terms=2,max_terms=2,min_digits=1,max_digits=1"
}
# Settings by task for training policies, for all algorithms.
_BY_TASK = {
  "chain_sum": {
    "completion_length": 10,
    "num_prompts": 16,
    "max_visits": 4,
    "policy_learning_rate": 1.75e-5,
    "optimizer_options": "b2=0.95",
  }
}


def make_common(task: str) -> ml_collections.ConfigDict:
  """Makes the settings shared by all runs on a pretrained model.

  Args:
    task: reasoning-gym's name of the task.
  """
  config = ml_collections.ConfigDict()
  # smollm2 or gemma3-270m (of Python packages), a GGUF file, a folder of
  # safetensors, or the id of a model that has been downloaded from the hub.
  config.model = "smollm2"
  defaults.add_options(config, pretrained.Options)

  config.task = task
  config.instruction = ""  # Text after every question.
  config.chat = True  # Whether questions are user messages of a chat.
  if task == "data":
    # Files of rows; validation and test rows are taken from `data` if unset.
    for name in ("data", "validation", "test"):
      config[name] = config_dict.placeholder(str)
    config.question_field, config.answer_field = "question", "answer"
    # "NAME*WEIGHT,FILE.py:FUNCTION*WEIGHT"; the first says what is correct.
    config.rewards = "numeric"
    config.reward_combination = "sum"  # Or standardised, each by its own.
  else:
    # Options as "name=value,..."; extraction of the answer.
    config.task_options = _TASK_OPTIONS.get(task, "")
    config.extraction = config_dict.placeholder(str)
    config.reward = "exact"  # Or "score", the score of the task's verifier.
  config.completion_length = 24  # Tokens.
  # Completions that a device generates at a time, the next one when one ends:
  # faster where they differ much in length. 0 for all.
  config.generation_slots = 0
  config.scoring_workers = 1  # Processes.
  config.scoring_seconds = 10.0  # Time limit per completion.

  defaults.add_options(
    config,
    settings.RunOptions,
    without=build.NOT_SET,
  )
  config.num_seeds = 1
  config.optimizer_options = "b2=0.99"  # Runs are short.
  config.learning_rate_warmup = config_dict.placeholder(int)  # Tuned.
  config.policy_max_gradient_norm = 1.0
  config.updates_per_chunk = 1
  # A checkpoint of a model and its optimizer takes seconds.
  config.checkpoint_seconds, config.keep_checkpoints = 600.0, 1

  # Amount: each seed takes num_updates × num_prompts × num_samples samples.
  config.num_updates = 100
  config.eval_problems = 64
  config.eval_samples = 4
  config.eval_batch = 64  # Sequences; all samples of a prompt share a batch.

  # Data: num_samples completions of each of num_prompts prompts.
  config.num_prompts = 8
  config.num_samples = 8
  config.num_epochs = 1
  defaults.add_options(config, generation.Sampling)

  # Memory and precision.
  config.dtype = "float32"  # Or bfloat16; parameters and losses are float32.
  config.rematerialize = False
  # Tokens of a sequence whose attention weights are in memory at a time; 0 for
  # all.
  config.attention_block = 0
  # Tokens whose logits are in memory at a time; 0 for all, None for 32 MiB of
  # logits, or 1 GiB on accelerators.
  config.chunk_tokens = config_dict.placeholder(int)

  # A value of None is filled in by `tuned`.
  config.beta = config_dict.placeholder(float)
  config.export = False  # Whether to write the model for transformers.
  return config


def get_config(task: str = "chain_sum") -> ml_collections.ConfigDict:
  """Settings of a run.

  Args:
    task: reasoning-gym's name of the task.
  """
  config = make_common(task)
  config.algorithm = "lco_mse"
  # Learning: see `Options` of lco_jax.language.training.
  defaults.add_options(
    config, training.Options, without=(*build.NOT_SET, *config.keys())
  )
  # Updates between evaluations on validation problems, of which the best policy
  # is kept; 0 for none before the end.
  config.eval_every = 0
  # How the model is held where only adapters are trained: float32, nf4, int8.
  config.base_format = build.BASE_FORMATS[0]
  config.max_visits = 1  # Maximal updates with the same unsolved prompt.

  # Model for advantage=verifier (its log-probabilities) and =preference (their
  # ratio to verifier_reference, the model that it was trained from; None for
  # config.model). It needs the same tokens as config.model.
  config.verifier = config_dict.placeholder(str)
  config.verifier_reference = config_dict.placeholder(str)

  config.update(_BY_TASK.get(task, {}))
  # Last: it refuses an option that is called like a setting.
  defaults.add_algorithm_options(config)

  config.tuned = {"chosen": ("task", task)} | {
    algorithm: dict(_DEFAULT) for algorithm in algorithms.ALGORITHMS
  }
  return config
