"""The supervised start of a language model: training on right answers."""

import jax
import jax.numpy as jnp
import optax

from lco_jax import losses, networks, numerics, tasks
from lco_jax.algorithms import policy_losses
from lco_jax.language import data, generation, objectives, signals, training
from lco_jax.training import program, update


def make_training(
  task: tasks.Task,
  model: networks.LanguageModel,
  optimizer: optax.GradientTransformation,
  *,
  num_prompts: int,
) -> program.Training:
  """Builds supervised training on right answers, −log π of their tokens.

  It is REINFORCE of the answers with an advantage of 1, one update a batch.

  Args:
    task: what is asked.
    model: the policy.
    optimizer: of the policy.
    num_prompts: N over all devices.
  """
  draw = tasks.draw_from(task, "train")

  def collect(params, actor, keys):
    problems = training.repeated(jax.vmap(draw)(keys), 1)
    mask = problems.answer != tasks.PADDING
    logits = generation.completion_logits(
      model,
      params["policy"],
      problems.prompt,
      problems.padding,
      problems.answer,
    )
    solved = jnp.all(
      (jnp.argmax(logits, axis=-1) == problems.answer) | ~mask, axis=-1
    )
    return actor, data.Samples(
      prompt=problems.prompt,
      padding=problems.padding,
      action=problems.answer,
      mask=mask,
      answer=problems.answer,
      logits=logits,
      reward=solved.astype(jnp.float32),
      correct=solved,
      truncated=jnp.zeros_like(solved),
    )

  def prepare(params, samples, completed):
    del completed
    ones = samples.mask.astype(jnp.float32)
    signal = signals.of_sampled(samples, ones)
    batch = training.make_batch(
      samples, samples.mask, signal, samples.logits, 0.0 * ones, "token"
    )
    metrics = numerics.across_devices(
      {
        "correct": numerics.average(samples.reward),
        "entropy": numerics.average(
          losses.entropy(samples.logits), samples.mask
        ),
      }
    )
    return batch, metrics

  objective = objectives.make_token_objective(
    generation.completion_outputs(model), policy_losses.reinforce()
  )
  return program.Training(
    init_params=lambda key, given=(): {"policy": model.init(key)} | dict(given),
    init_actor=lambda keys: (),
    collect=collect,
    prepare=prepare,
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
