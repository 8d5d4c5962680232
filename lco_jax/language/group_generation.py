"""Generation of several completions of each prompt of an update, compiled."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from lco_jax import networks, numerics, types
from lco_jax.language import data, generation, samplers
from lco_jax.training import memory, placement, program


class Lengths(NamedTuple):
  """Lengths of completions, over all devices.

  Attributes:
    longest: int32[seeds], tokens of the longest.
    packed: int32[seeds], most places that a step on a device needs for packed
      tokens; −1 if steps read completions whole.
    num_steps: int32[seeds], most steps that a device took to generate them.
  """

  longest: Array
  packed: Array
  num_steps: Array


@dataclasses.dataclass(frozen=True)
class GroupGeneration:
  """Samples G completions of N prompts by the policy of a learner state.

  Attributes:
    model: that completes.
    training: whose streams are prompts, and whose steps are samples.
    completes: parts of the parameters → those of the model.
    completion_length: C, tokens of a completion at most.
    end: tokens that end one.
    sampling: the distribution that tokens are sampled from.
    gather_dtype: type in which divided weights are gathered once, before the
      first token; None to gather each layer for each token.
    num_slots: completions of a seed that run at a time on a device; 0 for all.
  """

  model: networks.LanguageModel
  training: program.Training
  completes: Callable[[Mapping[str, types.Params]], types.Params]
  completion_length: int
  end: tuple[int, ...]
  sampling: generation.Sampling
  gather_dtype: str | None = None
  num_slots: int = 0

  @property
  def num_samples(self) -> int:
    """G, samples of a prompt."""
    return self.training.num_steps * self.training.samples_per_step

  def count_steps(self, num_prompts: int) -> int:
    """Counts the steps of completing N prompts if no completion ends early."""
    completions = self.num_samples * num_prompts
    rounds = -(-completions // (self.num_slots or completions))
    return rounds * (self.completion_length - 1)

  def trace(
    self, mesh: Mesh, state: types.LearnerState, prompt: Any, padding: Any
  ) -> placement.Traced:
    """Traces the generation for all seeds on a mesh.

    Args:
      mesh: that of the state.
      state: a learner state, read for its shapes.
      prompt: int32[seeds, N, P], padded on the left, read likewise.
      padding: int32[seeds, N], likewise.

    Returns:
      (state, prompt, padding) → (Samples [seeds, G, N, ...], `Lengths` of each
      seed [seeds]).
    """
    return placement.trace(
      self._generate_all,
      mesh,
      (
        placement.make_state_specs(state, mesh),
        placement.STREAMS,
        placement.STREAMS,
      ),
      (placement.ROLLOUTS, placement.EVERYWHERE),
      state,
      prompt,
      padding,
      long_reductions=True,
    )

  def _generate_all(self, state, prompt, padding):
    """Every seed's completions, and their lengths."""
    samples, steps = placement.each_seed(self._generate)(state, prompt, padding)
    longest = jnp.max(jnp.sum(samples.mask, axis=-1), axis=(1, 2))
    packed = jnp.full(longest.shape, -1)
    if self.training.count_packed is not None:
      packed = jax.vmap(self.training.count_packed)(samples.mask)
    lengths = numerics.pmax(Lengths(longest, packed, steps), numerics.DATA_AXIS)
    return samples, placement.gather_seeds(lengths, axis=0)

  def _generate(
    self, state: types.LearnerState, prompt: Array, padding: Array
  ) -> tuple[data.Samples, Array]:
    """One seed's completions, and the steps that they took.

    Returns:
      (Samples [G, N], without rewards; int32[]).
    """
    keys = jax.vmap(
      functools.partial(jax.random.split, num=self.num_samples), out_axes=1
    )(program.collection_keys(self.training, state))
    params = self.completes(memory.acting(state.params))
    if self.gather_dtype is not None:
      params = networks.gather_all(params, self.gather_dtype)
    done = samplers.complete_prompts(
      self.model,
      params,
      prompt,
      padding,
      keys,
      self.completion_length,
      self.end,
      self.sampling,
      self.num_slots,
    )
    hidden, log_prob = done.observed
    shape = done.truncated.shape
    blank = jnp.zeros(shape, bool)
    samples = data.Samples(
      prompt=jnp.broadcast_to(prompt[None], (*shape, prompt.shape[-1])),
      padding=jnp.broadcast_to(padding[None], shape),
      action=done.tokens,
      mask=done.mask,
      hidden=hidden,
      log_prob=jnp.where(done.mask, log_prob, 0.0),
      reward=jnp.zeros(shape),
      correct=blank,
      truncated=done.truncated,
      failed=blank,
      first_visit=blank,
    )
    return samples, jnp.max(done.num_steps)
