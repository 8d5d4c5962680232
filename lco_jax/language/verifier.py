"""Verifiers: language models trained by pairs of completions.

A fixed policy, the reference, completes each prompt G times; every completion
with a larger reward is preferred to every one with a smaller. QRM learns to
give the better ones more probability a token, DPO more than the reference does.
Their log-probabilities are dense advantages, see `lean_signals`.

Axes: samples G, prompts N, tokens C.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lco_jax import checks, losses, networks, numerics
from lco_jax.language import lean_objectives, prompt_repeats
from lco_jax.training import program, update

Array = jax.Array

# Algorithm → options of its own.
ALGORITHMS = {"qrm": ("cross_entropy_coefficient",), "dpo": ("beta",)}
# The part of the parameters that completes.
SOURCE = "reference"


def options_of(algorithm: str) -> tuple[str, ...]:
  """Names of the options that an algorithm takes.

  Raises:
    ValueError: if the algorithm is unknown.
  """
  checks.check_choice("algorithm", algorithm, ALGORITHMS)
  return ALGORITHMS[algorithm]


class Completions(NamedTuple):
  """Completions of prompts, and what they are worth.

  Attributes:
    prompt: int32[..., P], padded on the left.
    padding: int32[...].
    action: int32[..., C].
    mask: bool[..., C].
    reference_log_prob: float[..., C], of the tokens by the reference, in nats.
    reward: float[...].
    scored: bool[...], whether that could be found.
  """

  prompt: Array
  padding: Array
  action: Array
  mask: Array
  reference_log_prob: Array
  reward: Array
  scored: Array


def score(algorithm: str, log_prob, reference_log_prob, mask):
  """What completions are scored by, which is to be larger for better ones.

  Args:
    algorithm: `qrm`, mean log π of the tokens; `dpo`, Σ (log π − log π_ref).
    log_prob: float[..., C], log π of the tokens, in nats.
    reference_log_prob: float[..., C]; of `dpo`.
    mask: bool[..., C], tokens that count.

  Returns:
    float[...].
  """
  if algorithm == "qrm":
    total = jnp.sum(jnp.where(mask, log_prob, 0.0), axis=-1)
    length = jnp.sum(mask, axis=-1, dtype=total.dtype)
    return total / jnp.maximum(length, 1.0)
  ratio = jnp.where(mask, log_prob - reference_log_prob, 0.0)
  return jnp.sum(ratio, axis=-1)


def make_training(
  model: networks.LanguageModel,
  optimizer: optax.GradientTransformation,
  *,
  algorithm: str,
  num_prompts: int,
  num_samples: int,
  num_epochs: int = 1,
  chunk_tokens: int | None = None,
  beta: float = 0.1,
  cross_entropy_coefficient: float = 1.0,
) -> program.Training:
  """Builds the training of a verifier.

  Args:
    model: of the verifier and of the reference, which both begin as given.
    optimizer: of the verifier, the part "policy".
    algorithm: one of ALGORITHMS.
    num_prompts: N over all devices.
    num_samples: G ≥ 2.
    num_epochs: passes over each batch.
    chunk_tokens: as of `llm.make_training`.
    beta: of `dpo`, KL strength, positive.
    cross_entropy_coefficient: of `qrm`, ≥ 0.

  Raises:
    ValueError: if a number or a name is out of range.

  Source: arXiv:2603.00963, dense advantages; Rafailov et al. 2023,
    arXiv:2305.18290.
  """
  options_of(algorithm)
  checks.check_number("beta", beta, above=0.0)
  checks.check_number(
    "cross_entropy_coefficient", cross_entropy_coefficient, at_least=0.0
  )
  if num_samples < 2:
    raise ValueError(f"num_samples must be ≥ 2 for pairs, got {num_samples}")
  chunk = lean_objectives.chunk_of(chunk_tokens, model.vocab_size)

  def prepare(params, samples, completed):
    del params, completed
    batch = Completions(
      prompt=samples.prompt,
      padding=samples.padding,
      action=samples.action,
      mask=samples.mask,
      reference_log_prob=samples.log_prob,
      reward=samples.reward,
      scored=~samples.failed,
    )
    even = jnp.ptp(samples.reward, axis=0) == 0
    return batch, numerics.across_devices(
      {
        "correct": numerics.average(samples.correct.astype(jnp.float32)),
        "even_groups": numerics.average(even.astype(jnp.float32)),
        "scoring_failed": numerics.average(samples.failed.astype(jnp.float32)),
      }
    )

  def objective(params, batch):
    batch = jax.tree.map(
      lambda leaf: leaf.reshape(num_samples, -1, *leaf.shape[1:]), batch
    )
    read = lean_objectives.of_completions(model, params["policy"], batch, chunk)
    scores = score(
      algorithm, read.log_prob, batch.reference_log_prob, batch.mask
    )
    shape = (num_samples, *scores.shape)
    better = jnp.broadcast_to(scores[:, None], shape)
    worse = jnp.broadcast_to(scores[None], shape)
    where = batch.reward[:, None] > batch.reward[None]
    where &= batch.scored[:, None] & batch.scored[None]
    if algorithm == "qrm":
      loss = losses.qrm_loss(better, worse, cross_entropy_coefficient, where)
    else:
      loss = losses.dpo_loss(better, worse, beta, where)
    right = (better > worse).astype(jnp.float32)
    metrics = {
      "preference_accuracy": numerics.average(right, where),
      "preference_margin": numerics.average(better - worse, where),
      # Of all that a prompt's samples could make: half, were all apart.
      "paired": numerics.average(where.astype(jnp.float32)),
    }
    return {"policy": numerics.average(loss, where)}, metrics

  def init_params(key, given):
    del key
    given = dict(given)
    return given | {SOURCE: given["policy"]}

  return program.Training(
    init_params=init_params,
    init_actor=prompt_repeats.first,
    collect=None,
    prepare=prepare,
    update=update.make_update(objective, {"policy": optimizer}),
    assess=lambda before, params, batch: {},
    optimizers={"policy": optimizer},
    headline="preference_accuracy",
    num_streams=num_prompts,
    num_steps=num_samples,
    num_epochs=num_epochs,
    num_minibatches=1,
    follow=lambda drawn, samples, completed: prompt_repeats.following(
      drawn, samples.correct, completed, max_visits=1
    ),
    long_reductions=True,
  )
