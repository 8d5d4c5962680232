"""The supervised start of a language model: training on right answers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from lco_jax import algorithms, networks, numerics, tasks
from lco_jax.language import (
  data,
  objectives,
  preparation,
  reading,
  samplers,
  signals,
)
from lco_jax.language.setup import Options, Setup
from lco_jax.training import program, update

# Supervised training is REINFORCE of the answers with an advantage of 1.
_ALGORITHM = algorithms.ALGORITHMS["reinforce"]


def make_training(
  task: tasks.Task,
  model: networks.LanguageModel,
  optimizer: optax.GradientTransformation,
  *,
  num_prompts: int,
) -> program.Training:
  """Builds supervised training on right answers, −log π of their tokens.

  Each batch gets one update.

  Args:
    task: draws problems with their answers.
    model: the policy.
    optimizer: of the policy.
    num_prompts: N over all devices.
  """
  setup = Setup(
    model,
    _ALGORITHM,
    _ALGORITHM.policy_loss(),
    samplers.Sampler(task.completion_length),
    Options(num_prompts=num_prompts, num_samples=1, chunk_tokens=0),
  )
  whole = objectives.make_objective(setup, num_samples=1)

  def objective(params, batch, before):
    parts, metrics = whole(params, batch, before)
    # There are no targets, of which the others speak.
    return parts, {k: metrics[k] for k in ("entropy", "clip_fraction")}

  return program.Training(
    init_params=lambda key, given=(): {"policy": model.init(key)} | dict(given),
    init_actor=lambda keys: (),
    collect=functools.partial(_collect, task, model),
    prepare=_prepare,
    update=update.make_update(objective, {"policy": optimizer}),
    assess=lambda before, params, batch: {},
    optimizers={"policy": optimizer},
    headline="correct",
    num_streams=num_prompts,
    num_steps=1,
    num_epochs=1,
    num_minibatches=1,
    long_reductions=True,
  )


def _collect(task, model, params, actor, keys):
  """Draws problems and takes their answers for samples, [1, N]."""
  problems = jax.vmap(tasks.draw_from(task, "train"))(keys)
  problems = samplers.repeat_problems(problems, 1)
  mask = problems.answer != tasks.PADDING
  blank = jnp.zeros(problems.padding.shape)
  samples = data.Samples(
    prompt=problems.prompt,
    padding=problems.padding,
    action=problems.answer,
    mask=mask,
    hidden=jnp.zeros((*mask.shape, 0)),
    log_prob=jnp.zeros(mask.shape),
    reward=blank,
    correct=blank > 0,
    truncated=blank > 0,
    answer=problems.answer,
  )
  hidden = reading.read_hidden(model, params["policy"], samples)
  logits = model.head(params["policy"], hidden)
  log_prob = numerics.action_log_prob(logits, problems.answer)
  likeliest = jnp.argmax(logits, axis=-1)
  solved = jnp.all((likeliest == problems.answer) | ~mask, axis=-1)
  return actor, dataclasses.replace(
    samples,
    hidden=hidden,
    log_prob=jnp.where(mask, log_prob, 0.0),
    reward=solved.astype(jnp.float32),
    correct=solved,
  )


def _prepare(params, samples):
  """Makes the batch in which every token of an answer has an advantage of 1."""
  ones = samples.mask.astype(jnp.float32)
  batch = preparation.make_batch(
    samples,
    signals.sampled_signal(samples, ones),
    preparation.Counted(samples.mask, ones, jnp.zeros_like(samples.correct)),
    _ALGORITHM,
    samples.mask.shape[-1],
    beta=jnp.ones_like(ones),
    reference_log_prob=jnp.zeros_like(ones),
  )
  return batch, numerics.across_devices(
    {"correct": numerics.average(samples.reward)}
  )
