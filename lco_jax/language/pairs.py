"""Training by pairs: a policy learns which completions of a prompt are better.

A fixed policy, or with REBEL the policy itself, completes each prompt G times.
The completions are compared in groups of K, every one with every other. QRM
learns to give better ones more probability a token, DPO more than the reference
does, REBEL regresses differences of reward on those of log-probability. What
QRM or DPO learn are verifiers: their log-probabilities are dense advantages,
see `signals`.

A stream is a prompt, its steps are groups. Axes: groups T, prompts N,
completions of a group K, tokens C.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lco_jax import checks, losses, networks, numerics, types
from lco_jax.checks import setting
from lco_jax.language import data, reading, sample_metrics, samplers
from lco_jax.language.setup import BatchOptions
from lco_jax.training import program, rows, update

# Algorithm → options of its own.
ALGORITHMS = {
  "qrm": ("cross_entropy_coefficient", "score_scale", "score_margin"),
  "dpo": ("beta",),
  "rebel": ("beta",),
}
# Those whose result scores tokens for others.
VERIFIERS = ("qrm", "dpo")


def source_of(algorithm: str) -> str:
  """The part of the parameters that completes prompts.

  Raises:
    ValueError: if the algorithm is unknown.
  """
  checks.check_choice("algorithm", algorithm, ALGORITHMS)
  return "policy" if algorithm == "rebel" else "reference"


@dataclasses.dataclass(frozen=True)
class Options(BatchOptions):
  """Settings of DPO, QRM and REBEL, which learn from pairs of completions.

  Minibatches divide a prompt's groups.
  """

  num_samples: int = setting(8, "samples of a prompt, G", at_least=2)
  group_size: int | None = setting(
    None,
    "samples compared with each other, K; None for all of a prompt",
    at_least=2,
  )
  beta: float = setting(0.1, "KL strength of dpo and rebel", above=0.0)
  cross_entropy_coefficient: float = setting(
    1.0, "qrm: weight of the better completion's likelihood", at_least=0.0
  )
  score_scale: float = setting(
    0.2, "qrm: β, factor on the difference of scores", above=0.0
  )
  score_margin: float = setting(
    2.0, "qrm: γ, by which the scaled difference should exceed 0"
  )

  def __post_init__(self):
    super().__post_init__()
    if self.num_samples % self.size:
      raise ValueError(
        f"num_samples must be a multiple of {self.size}, of which pairs are"
        f" made, got {self.num_samples}"
      )

  @property
  def size(self) -> int:
    """Completions of a group, K."""
    return self.group_size or self.num_samples

  @property
  def num_groups(self) -> int:
    """Groups of a prompt, T."""
    return self.num_samples // self.size


@types.pytree_dataclass
class Groups:
  """Groups of completions that are compared with each other.

  Attributes:
    prompt: int32[..., K, P], padded on the left.
    padding: int32[..., K].
    action: int32[..., K, C].
    mask: bool[..., K, C].
    old_log_prob: float[..., K, C], of the tokens by the policy that sampled, in
      nats.
    reward: float[..., K].
    scored: bool[..., K], whether the reward could be found.
  """

  prompt: Array
  padding: Array
  action: Array
  mask: Array
  old_log_prob: Array
  reward: Array
  scored: Array


def make_training(
  model: networks.LanguageModel,
  algorithm: str,
  optimizer: optax.GradientTransformation,
  sampler: samplers.Sampler,
  options: Options,
) -> program.Training:
  """Builds training by pairs.

  Args:
    model: of the policy and of the reference, which begin alike.
    algorithm: a key of ALGORITHMS.
    optimizer: of the part "policy".
    sampler: completes with the part `source_of` the algorithm.
    options: settings of learning.

  Raises:
    ValueError: if the algorithm is unknown.

  Source: arXiv:2603.00963, dense advantages; Rafailov et al. 2023,
    arXiv:2305.18290; Gao et al. 2024, arXiv:2404.16767.
  """
  chunk_tokens = reading.resolve_chunk(options.chunk_tokens, model.vocab_size)
  source = source_of(algorithm)
  objective = functools.partial(
    _objective, model, algorithm, options, chunk_tokens
  )
  return program.Training(
    init_params=functools.partial(_init_params, model),
    init_actor=sampler.init_actor,
    collect=sampler.collect,
    prepare=functools.partial(_prepare, model, source, options, chunk_tokens),
    update=update.make_update(objective, {"policy": optimizer}),
    assess=functools.partial(_assess, model, chunk_tokens),
    optimizers={"policy": optimizer},
    headline="correct" if algorithm == "rebel" else "preference_accuracy",
    num_streams=options.num_prompts,
    num_steps=options.num_groups,
    num_epochs=options.num_epochs,
    num_minibatches=options.num_minibatches,
    follow=sampler.follow,
    long_reductions=True,
    samples_per_step=options.size,
  )


def score_completions(
  algorithm: str, log_prob: Array, old_log_prob: Array, mask: Array
) -> Array:
  """Scores completions; better ones are to have larger scores.

  Args:
    algorithm: `qrm`, mean log π of the tokens; otherwise Σ (log π − log π_old).
    log_prob: float[..., C], log π of the tokens, in nats.
    old_log_prob: float[..., C], of the policy that sampled; not of `qrm`.
    mask: bool[..., C], tokens that count.

  Returns:
    float[...].
  """
  if algorithm == "qrm":
    total = jnp.sum(jnp.where(mask, log_prob, 0.0), axis=-1)
    length = jnp.sum(mask, axis=-1, dtype=total.dtype)
    return total / jnp.maximum(length, 1.0)
  ratio = jnp.where(mask, log_prob - old_log_prob, 0.0)
  return jnp.sum(ratio, axis=-1)


def pair_losses(
  algorithm: str, scores: Array, reward: Array, scored: Array, options: Options
) -> tuple[numerics.Average, dict[str, numerics.Average]]:
  """Losses of all pairs of each group.

  Args:
    algorithm: a key of ALGORITHMS.
    scores: float[..., K], from `score_completions`.
    reward: float[..., K].
    scored: bool[..., K], completions whose reward is known.
    options: of the training.

  Returns:
    (loss, metrics), as sums and counts over pairs: of a better and a worse
    completion, or with `rebel` of any two.
  """
  shape = (*scores.shape, scores.shape[-1])
  first = jnp.broadcast_to(scores[..., :, None], shape)
  second = jnp.broadcast_to(scores[..., None, :], shape)
  difference = reward[..., :, None] - reward[..., None, :]
  known = scored[..., :, None] & scored[..., None, :]
  if algorithm == "rebel":
    each_once = jnp.triu(jnp.ones(shape[-2:], bool), 1)
    loss = losses.rebel_loss(first, second, difference, options.beta)
    return numerics.average(
      loss, known & jnp.broadcast_to(each_once, shape)
    ), {}
  where = known & (difference > 0)
  if algorithm == "qrm":
    loss = losses.qrm_loss(
      first,
      second,
      options.cross_entropy_coefficient,
      where,
      options.score_scale,
      options.score_margin,
    )
  else:
    loss = losses.dpo_loss(first, second, options.beta, where)
  right = (first > second).astype(jnp.float32)
  return numerics.average(loss, where), {
    "preference_accuracy": numerics.average(right, where),
    "preference_margin": numerics.average(first - second, where),
    # Of all ordered pairs of a group: at most (K − 1) / 2K.
    "paired": numerics.average(where.astype(jnp.float32)),
  }


def _init_params(
  model: networks.LanguageModel, key: types.PRNGKey, given: Any = ()
) -> dict[str, types.Params]:
  given = dict(given)
  own = given["policy"] if "policy" in given else model.init(key)
  return {"policy": own, "reference": own} | given


def _prepare(
  model: networks.LanguageModel,
  source: str,
  options: Options,
  chunk_tokens: int,
  params: Mapping[str, types.Params],
  samples: data.Samples,
) -> tuple[Groups, types.Metrics]:
  """Groups samples [G, N]: Groups [T, N]."""
  size = options.size

  def group(leaf):  # [K · T, N, ...] → [T, N, K, ...]
    return jnp.moveaxis(leaf.reshape(size, -1, *leaf.shape[1:]), 0, 2)

  blank = jnp.zeros_like(samples.correct)
  failed = blank if samples.failed is None else samples.failed
  groups = Groups(
    prompt=group(samples.prompt),
    padding=group(samples.padding),
    action=group(samples.action),
    mask=group(samples.mask),
    old_log_prob=group(samples.log_prob),
    reward=group(samples.reward),
    scored=group(~failed),
  )
  some = sample_metrics.take_quarter((samples.hidden, samples.mask))
  entropy = reading.map_tokens(
    lambda hidden: losses.entropy(model.head(params[source], hidden)),
    some[0],
    chunk_tokens,
  )
  shares = {
    "correct": samples.correct,
    "even_pairs" if size == 2 else "even_groups": (
      jnp.ptp(groups.reward, axis=-1) == 0
    ),
  }
  if samples.failed is not None:
    shares["scoring_failed"] = samples.failed
  return groups, numerics.across_devices(
    {k: numerics.average(v.astype(jnp.float32)) for k, v in shares.items()}
    | {"entropy": numerics.average(entropy, some[1])}
  ) | {
    "tokens": numerics.psum(
      jnp.sum(samples.mask, dtype=jnp.float32), numerics.DATA_AXIS
    )
  }


def _read_groups(
  model: networks.LanguageModel,
  params: types.Params,
  groups: Groups,
  chunk_tokens: int,
) -> Array:
  """log π of the tokens of Groups [T, N]: float[T, N, K, C]."""
  num_groups, _, size = groups.reward.shape
  log_prob = reading.read_log_prob(
    model, params, _take_apart(groups), chunk_tokens
  )
  log_prob = log_prob.reshape(num_groups, size, *log_prob.shape[1:])
  return jnp.moveaxis(log_prob, 1, 2)


def _take_apart(groups: Groups) -> Groups:
  """Completions of groups, [T, N, K, ...] → [T · K, N, ...]."""

  def take_apart(leaf):
    leaf = jnp.moveaxis(leaf, 2, 1)
    return leaf.reshape(-1, *leaf.shape[2:])

  return jax.tree.map(take_apart, groups)


def _objective(
  model: networks.LanguageModel,
  algorithm: str,
  options: Options,
  chunk_tokens: int,
  params: Mapping[str, types.Params],
  batch: Groups,
  before: Mapping[str, types.Params],
) -> tuple[dict[str, numerics.Average], dict[str, numerics.Average]]:
  """Losses of a minibatch, Groups [T / M · N]."""
  del before
  num_groups = options.num_groups // options.num_minibatches
  batch = rows.unflatten(batch, num_groups)
  scores = score_completions(
    algorithm,
    _read_groups(model, params["policy"], batch, chunk_tokens),
    batch.old_log_prob,
    batch.mask,
  )
  loss, metrics = pair_losses(
    algorithm, scores, batch.reward, batch.scored, options
  )
  return {"policy": loss}, metrics


def _assess(
  model: networks.LanguageModel,
  chunk_tokens: int,
  before: Mapping[str, types.Params],
  params: Mapping[str, types.Params],
  batch: Groups,
) -> types.Metrics:
  """Estimates the KL from the policy that sampled, on a quarter of a batch."""
  del before
  some = sample_metrics.take_quarter(_take_apart(batch))
  now = reading.read_log_prob(model, params["policy"], some, chunk_tokens)
  return numerics.across_devices(
    {"kl_old_new": numerics.average(some.old_log_prob - now, some.mask)}
  )
