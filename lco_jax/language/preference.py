"""Pairs: trains a policy by two completions of a prompt each.

DPO learns which of two completions by the reference policy is preferred, that
with the larger reward, and nothing from equal ones; signals come of it. REBEL
regresses differences of reward, of completions by the policy itself. A stream
is a prompt, its steps are pairs. Axes: pairs T, prompts N, completions of a
pair 2, tokens C.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lco_jax import losses, networks, numerics, tasks
from lco_jax.language import generation, training
from lco_jax.training import program, update

Array = jax.Array

ALGORITHMS = ("dpo", "rebel")


class Pairs(NamedTuple):
  """Pairs of completions.

  Attributes:
    prompt: int32[..., 2, P], padded on the left.
    padding: int32[..., 2].
    action: int32[..., 2, C].
    mask: bool[..., 2, C].
    old_log_prob: float[..., 2], of whole completions by the policy that they
      come from, in nats.
    reward: float[..., 2].
  """

  prompt: Array
  padding: Array
  action: Array
  mask: Array
  old_log_prob: Array
  reward: Array


def dpo(log_ratio: Array, reward: Array, beta: float):
  """The loss of pairs whose larger reward is preferred.

  Args:
    log_ratio: float[..., 2], log π − log π_ref of whole completions, in nats.
    reward: float[..., 2].
    beta: KL strength, > 0.

  Returns:
    (loss, metrics), as sums and counts over the pairs with a winner.
  """
  better = jnp.sign(reward[..., 0] - reward[..., 1])
  where = better != 0
  margin = better * (log_ratio[..., 0] - log_ratio[..., 1])
  loss = losses.dpo_loss(margin, jnp.zeros_like(margin), beta, where)
  right = (margin > 0).astype(jnp.float32)
  return numerics.average(loss, where), {
    "preference_accuracy": numerics.average(right, where),
    "preference_margin": numerics.average(margin, where),
  }


def rebel(log_ratio: Array, reward: Array, beta: float):
  """The loss of pairs whose difference of reward is regressed.

  Args:
    log_ratio: float[..., 2], log π − log π_old of whole completions, in nats.
    reward: float[..., 2].
    beta: KL strength, > 0.

  Returns:
    (loss, metrics), as sums and counts over all pairs.
  """
  difference = reward[..., 0] - reward[..., 1]
  ratios = log_ratio[..., 0], log_ratio[..., 1]
  loss = losses.rebel_loss(*ratios, difference, beta)
  return numerics.average(loss), {}


def make_training(
  task: tasks.Task,
  model: networks.LanguageModel,
  optimizer: optax.GradientTransformation,
  *,
  algorithm: str = "dpo",
  num_prompts: int,
  num_pairs: int,
  num_epochs: int,
  num_minibatches: int,
  sampling: generation.Sampling,
  beta: float,
) -> program.Training:
  """Builds the training of a policy by pairs.

  Args:
    task: asks and verifies; a solution is worth 1.
    model: of the policy and of the reference, which both begin alike.
    optimizer: of the policy.
    algorithm: `dpo` or `rebel`.
    num_prompts: N over all devices.
    num_pairs: T, pairs of each prompt.
    num_epochs: passes over each batch.
    num_minibatches: minibatches of each pass, a divisor of T.
    sampling: the distribution that completions come from.
    beta: KL strength, positive and finite.

  Raises:
    ValueError: if a number or a name is out of range.

  Source: Rafailov et al. 2023, arXiv:2305.18290; Gao et al. 2024,
    arXiv:2404.16767.
  """
  if algorithm not in ALGORITHMS:
    raise ValueError(f"algorithm: unknown {algorithm!r}")
  if not 0 < beta < float("inf"):
    raise ValueError(f"beta must be positive and finite, got {beta}")
  sample = training.make_sampler(task, model, 2 * num_pairs, sampling)
  # The policy that completions, and so ratios, are of.
  source, pair_loss, headline = {
    "dpo": ("reference", dpo, "preference_accuracy"),
    "rebel": ("policy", rebel, "correct"),
  }[algorithm]
  outputs = generation.completion_outputs(model)

  def log_prob(params, batch):
    """Log-probabilities of whole completions [..., 2]."""
    logits = outputs(params, batch)
    tokens = numerics.action_log_prob(logits, batch.action)
    return jnp.sum(jnp.where(batch.mask, tokens, 0.0), axis=-1)

  def collect(params, actor, keys):
    actor, samples = sample({"policy": params[source]}, actor, keys)

    def paired(x):  # [2 T, N, ...] → [T, N, 2, ...]
      return jnp.moveaxis(x.reshape(2, -1, *x.shape[1:]), 0, 2)

    return actor, jax.tree.map(paired, samples)

  def prepare(params, samples, completed):
    del completed
    batch = Pairs(
      prompt=samples.prompt,
      padding=samples.padding,
      action=samples.action,
      mask=samples.mask,
      old_log_prob=log_prob(params[source], samples),
      reward=samples.reward,
    )
    spread = samples.reward[..., 0] != samples.reward[..., 1]
    return batch, numerics.across_devices(
      {
        "correct": numerics.average(samples.reward),
        "entropy": numerics.average(
          losses.entropy(samples.logits), samples.mask
        ),
        "even_pairs": numerics.average(1.0 - spread.astype(jnp.float32)),
      }
    )

  def objective(params, batch):
    log_ratio = log_prob(params["policy"], batch) - batch.old_log_prob
    loss, metrics = pair_loss(log_ratio, batch.reward, beta)
    return {"policy": loss}, metrics

  def assess(before, params, batch):
    moved = batch.old_log_prob - log_prob(params["policy"], batch)
    tokens = jnp.sum(batch.mask, dtype=jnp.float32)
    # An estimate: completions are of the policy that the KL is from.
    return numerics.across_devices(
      {"kl_old_new": numerics.Average(jnp.sum(moved), tokens)}
    )

  def init_params(key, given=()):
    given = dict(given)
    own = given["policy"] if "policy" in given else model.init(key)
    return {"policy": own, "reference": own} | given

  return program.Training(
    init_params=init_params,
    init_actor=lambda keys: (),
    collect=collect,
    prepare=prepare,
    update=update.make_update(objective, {"policy": optimizer}),
    assess=assess,
    optimizers={"policy": optimizer},
    headline=headline,
    num_streams=num_prompts,
    num_steps=num_pairs,
    num_epochs=num_epochs,
    num_minibatches=num_minibatches,
    long_reductions=True,
    samples_per_step=2,
  )
