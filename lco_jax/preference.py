"""Preferences: trains a policy by pairs of completions, for signals from it.

A stream is a prompt, its steps are pairs of completions by the reference
policy. In a pair the completion with the larger reward is preferred; a pair of
equal ones says nothing. Axes: pairs T, prompts N, completions of a pair 2,
tokens C.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lco_jax import (
  generation,
  language,
  losses,
  networks,
  numerics,
  tasks,
  training,
  update,
)

Array = jax.Array


class Pairs(NamedTuple):
  """Pairs of completions.

  Attributes:
    prompt: int32[..., 2, P], padded on the left.
    padding: int32[..., 2].
    action: int32[..., 2, C].
    mask: bool[..., 2, C].
    reference_log_prob: float[..., 2], of whole completions, in nats.
    reward: float[..., 2].
  """

  prompt: Array
  padding: Array
  action: Array
  mask: Array
  reference_log_prob: Array
  reward: Array


def make_training(
  task: tasks.Task,
  model: networks.LanguageModel,
  optimizer: optax.GradientTransformation,
  *,
  num_prompts: int,
  num_pairs: int,
  num_epochs: int,
  num_minibatches: int,
  sampling: generation.Sampling,
  beta: float,
) -> training.Training:
  """Builds direct preference optimisation of a policy.

  Args:
    task: asks and verifies; a solution is preferred to what is none.
    model: of the policy and of the reference, which both begin alike.
    optimizer: of the policy.
    num_prompts: N over all devices.
    num_pairs: T, pairs of each prompt.
    num_epochs: passes over each batch.
    num_minibatches: minibatches of each pass, a divisor of T.
    sampling: the distribution that the reference's completions come from.
    beta: KL strength, positive and finite.

  Raises:
    ValueError: if a number is out of range.

  Source: Rafailov et al. 2023, arXiv:2305.18290.
  """
  if not 0 < beta < float("inf"):
    raise ValueError(f"beta must be positive and finite, got {beta}")
  sample = language.make_sampler(task, model, 2 * num_pairs, sampling)
  outputs = generation.completion_outputs(model.apply)

  def log_prob(params, batch):
    """Log-probabilities of whole completions [..., 2]."""
    logits = outputs(params, batch)
    tokens = numerics.action_log_prob(logits, batch.action)
    return jnp.sum(jnp.where(batch.mask, tokens, 0.0), axis=-1)

  def collect(params, actor, keys):
    actor, samples = sample({"policy": params["reference"]}, actor, keys)

    def paired(x):  # [2 T, N, ...] → [T, N, 2, ...]
      return jnp.moveaxis(x.reshape(2, -1, *x.shape[1:]), 0, 2)

    return actor, jax.tree.map(paired, samples)

  def prepare(params, samples):
    batch = Pairs(
      prompt=samples.prompt,
      padding=samples.padding,
      action=samples.action,
      mask=samples.mask,
      reference_log_prob=log_prob(params["reference"], samples),
      reward=samples.reward,
    )
    spread = samples.reward[..., 0] != samples.reward[..., 1]
    return batch, update.across_devices(
      {
        "correct": numerics.average(samples.reward),
        "entropy": numerics.average(
          losses.entropy(samples.logits), samples.mask
        ),
        "even_pairs": numerics.average(1.0 - spread.astype(jnp.float32)),
      }
    )

  def objective(params, batch):
    first, second = jnp.moveaxis(
      log_prob(params["policy"], batch) - batch.reference_log_prob, -1, 0
    )
    better = jnp.sign(batch.reward[..., 0] - batch.reward[..., 1])
    where = better != 0
    margin = better * (first - second)
    loss = losses.dpo_loss(margin, jnp.zeros_like(margin), beta, where)
    return {"policy": numerics.average(loss, where)}, {
      "preference_accuracy": numerics.average(
        (margin > 0).astype(jnp.float32), where
      ),
      "preference_margin": numerics.average(margin, where),
    }

  def init_params(key, given=()):
    given = dict(given)
    own = given["policy"] if "policy" in given else model.init(key)
    return {"policy": own, "reference": own} | given

  return training.Training(
    init_params=init_params,
    init_actor=lambda keys: (),
    collect=collect,
    prepare=prepare,
    update=update.make_update(objective, {"policy": optimizer}),
    assess=lambda params, batch: {},
    optimizers={"policy": optimizer},
    headline="preference_accuracy",
    num_streams=num_prompts,
    num_steps=num_pairs,
    num_epochs=num_epochs,
    num_minibatches=num_minibatches,
    long_reductions=True,
  )
