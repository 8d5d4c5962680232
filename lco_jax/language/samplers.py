"""Samplers: where a language policy's prompts and rewards come from.

A sampler gives a Training its Samples. The sampler built here draws problems of
a task, completes and verifies them inside the compiled program. In
`host_sampler` the host draws problems and scores texts.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import checks, networks, numerics, tasks, types
from lco_jax.checks import setting
from lco_jax.language import data, generation
from lco_jax.training import rows

REWARDS = ("exact", "shaped")


@dataclasses.dataclass(frozen=True)
class Sampler:
  """A source of samples, as functions of one device's share.

  Attributes:
    completion_length: C, tokens of a completion at most.
    one_answer: whether samples have the only right answer of their problems.
    init_actor: keys [N] → what streams carry at first.
    collect: (params by part, what streams carry, keys [N]) → (what streams
      carry, Samples [G, N]); None where the host collects.
    follow: (what streams carry, Samples, completed updates int32[]) → what
      streams carry into the next update, where the host collects.
  """

  completion_length: int
  one_answer: bool = False
  init_actor: Callable[[types.PRNGKey], Any] = lambda keys: ()
  collect: Callable[..., tuple[Any, data.Samples]] | None = None
  follow: Callable[[Any, data.Samples, Array], Any] = (
    lambda actor, samples, completed: actor
  )


@dataclasses.dataclass(frozen=True)
class RewardOptions:
  """Settings of a task's rewards."""

  reward: str = setting(
    "exact",
    "exact: 1 for a solution; or shaped: the share of right tokens",
    choices=REWARDS,
  )
  reward_noise: float = setting(
    0.0,
    "probability that a reward r is turned into 1 − r",
    at_least=0.0,
    below=0.5,
  )

  group_attempts: int = setting(
    1,
    "prompts sampled for each that is learned from, until rewards differ",
    at_least=1,
  )

  def __post_init__(self):
    checks.check_settings(self)


def make_sampler(
  task: tasks.Task,
  model: networks.LanguageModel,
  num_samples: int,
  sampling: generation.Sampling,
  rewards: RewardOptions | None = None,
  part: str = "policy",
) -> Sampler:
  """Builds the sampler of a task whose problems are drawn in the graph.

  Args:
    task: draws problems and verifies completions.
    model: the policy.
    num_samples: G.
    sampling: the distribution that completions are sampled from.
    rewards: of completions; None for the defaults.
    part: of the parameters, the policy that completes.

  Raises:
    ValueError: if the temperature is 0.
  """
  checks.check_number("temperature", sampling.temperature, above=0.0)
  rewards = rewards or RewardOptions()
  draw = tasks.draw_from(task, "train")

  def collect(params, actor, keys):
    problem_keys, sample_keys, noise_keys = jnp.moveaxis(
      jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0
    )
    problems = jax.vmap(draw)(problem_keys)
    sample_keys = jax.vmap(
      lambda key: jax.random.split(key, num_samples), out_axes=1
    )(sample_keys)
    completion = complete_prompts(
      model,
      params[part],
      problems.prompt,
      problems.padding,
      sample_keys,
      task.completion_length,
      tasks.END,
      sampling,
    )
    problems = repeat_problems(problems, num_samples)
    answers = (problems, completion.tokens, completion.mask)
    correct = jax.vmap(jax.vmap(task.verify))(*answers)
    reward = correct.astype(jnp.float32)
    if rewards.reward == "shaped":
      near = jax.vmap(jax.vmap(tasks.agreement))(*answers)
      reward = jnp.maximum(reward, near)
    if rewards.reward_noise:
      turned = jax.vmap(
        lambda key: jax.random.bernoulli(
          key, rewards.reward_noise, (num_samples,)
        ),
        out_axes=1,
      )(noise_keys)
      reward = jnp.where(turned, 1.0 - reward, reward)
    hidden, log_prob = completion.observed
    return actor, data.Samples(
      prompt=problems.prompt,
      padding=problems.padding,
      action=completion.tokens,
      mask=completion.mask,
      hidden=hidden,
      log_prob=jnp.where(completion.mask, log_prob, 0.0),
      reward=reward,
      correct=correct,
      truncated=completion.truncated,
      answer=problems.answer,
    )

  return Sampler(
    task.completion_length,
    task.one_answer,
    collect=refill_even_groups(collect, rewards.group_attempts),
  )


def refill_even_groups(collect: Callable, attempts: int) -> Callable:
  """Samples other prompts in place of those whose rewards are all equal.

  Each stream takes the first of its attempts whose samples differ in reward, or
  else the first one. All attempts are sampled, whatever comes: generation costs
  that many times as much. The learner meets fewer easy and fewer hopeless
  prompts, so shares of right answers are those of what is learned from.

  Args:
    collect: as of Sampler.
    attempts: prompts that are sampled for each stream, ≥ 1.

  Source: Yu et al. 2025, arXiv:2503.14476 (DAPO, dynamic sampling).
  """
  if attempts == 1:
    return collect

  def collect_several(params, actor, keys):
    def attempt(number):
      own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
      return collect(params, actor, own)[1]

    every = jax.lax.map(attempt, jnp.arange(attempts))
    differs = jnp.ptp(every.reward, axis=1) > 0  # [attempts, N]
    chosen = jnp.argmax(differs, axis=0)

    def choose(leaf):  # [attempts, G, N, ...] → [G, N, ...]
      by_stream = jnp.moveaxis(leaf, 2, 0)  # [N, attempts, G, ...]
      taken = jax.vmap(lambda own, index: own[index])(by_stream, chosen)
      return jnp.moveaxis(taken, 0, 1)

    return actor, jax.tree.map(choose, every)

  return collect_several


def complete_prompts(
  model: networks.LanguageModel,
  params: types.Params,
  prompt: Array,
  padding: Array,
  keys: types.PRNGKey,
  completion_length: int,
  end: Any,
  sampling: generation.Sampling,
  num_slots: int = 0,
  limits: Array | None = None,
) -> generation.Completion:
  """Completes each prompt several times, keeping what learning needs.

  Args:
    model: the policy.
    params: the policy's.
    prompt: int32[N, P], padded on the left.
    padding: int32[N].
    keys: PRNG keys [G, N].
    completion_length: C.
    end: token that ends a completion, or several.
    sampling: the distribution that tokens are sampled from.
    num_slots: completions that run at a time; 0 for all.
    limits: int32[G, N], tokens of each completion at most; None for C.

  Returns:
    Completion [G, N, ...], whose `observed` is (final hidden states
    float[G, N, C, W], log π of the tokens float[G, N, C]).
  """

  def observe(params, hidden, logits, token):
    del params
    return hidden, numerics.action_log_prob(logits, token)

  completion = generation.generate(
    model,
    params,
    prompt,
    padding,
    rows.flatten(keys),
    completion_length,
    end,
    sampling,
    observe,
    num_slots,
    None if limits is None else rows.flatten(limits),
  )
  return rows.unflatten(completion, len(keys))


def repeat_problems(problems: tasks.Problem, num_samples: int) -> tasks.Problem:
  """Repeats problems [N, ...] for G samples of each: [G, N, ...]."""
  return jax.tree.map(
    lambda x: jnp.broadcast_to(x[None], (num_samples, *x.shape)), problems
  )
