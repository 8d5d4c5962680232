"""Slots of running completions, each refilled when its completion ends.

Where completions differ in length, a batch that runs until its longest has
ended computes many tokens that nobody asked for. Here fewer slots than
completions run, and a slot whose completion has ended takes the next one.

The cache of a slot holds its prompt, then a ring of as many tokens as a
completion may have. All slots write their next token to the same place of their
rings, wherever their completions began: a write per slot would be a scatter,
which is slow. Positions say which tokens of a ring are a slot's own.

Shapes: N prompts, B sequences, S slots, P prompt tokens, C completion tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lco_jax.networks import attention, partitioning


class Waiting(NamedTuple):
  """Sequences whose first token is sampled, and what they continue from.

  Attributes:
    sequences: int32[B], in the order in which slots take them; those that
      their first token ended come last.
    count: int32[], sequences to continue.
    tokens: int32[B], first token of each sequence.
    prompts: int32[B], prompt of each sequence.
    padding: int32[N], number of padded slots of each prompt.
    caches: pytree [N, ...], a cache of P tokens of each prompt.
  """

  sequences: Array
  count: Array
  tokens: Array
  prompts: Array
  padding: Array
  caches: Any


class _Slots(NamedTuple):
  """Slots, each with the sequence that runs in it.

  Attributes:
    sequence: int32[S]; B in an empty slot.
    length: int32[S], tokens of the sequence that are sampled.
    token: int32[S], the last of them.
    padding: int32[S], of the sequence's prompt.
    cache: pytree [S, ...] of P + C tokens.
  """

  sequence: Array
  length: Array
  token: Array
  padding: Array
  cache: Any


# (tokens before, (sequence int32[S], time int32[S]), step int32[], hidden
# states float[S, W], empty slots bool[S]) → (tokens with the next ones, those
# int32[S], slots whose sequences end with them bool[S]). Nothing is recorded of
# sequence B.
Sample = Callable[[Any, tuple[Array, Array], Array, Array, Array], tuple]


def continue_in_slots(
  read: Callable,
  waiting: Waiting,
  cache: Any,
  prompt_length: int,
  num_tokens: int,
  sample: Sample,
  completion: Any,
) -> Any:
  """Continues sequences to their ends, as many at a time as there are slots.

  Args:
    read: as of `LanguageModel.reader`.
    waiting: the sequences.
    cache: empty, pytree [S, ...] of P + C tokens.
    prompt_length: P.
    num_tokens: C.
    sample: samples the next tokens, and records them.
    completion: the first tokens.

  Returns:
    The completions.
  """
  num_sequences = len(waiting.sequences)
  num_slots = len(jax.tree.leaves(cache)[0])
  none = jnp.zeros(num_slots, jnp.int32)
  empty = _Slots(none + num_sequences, none, none, none, cache)

  def is_running(carry):
    _, slots, _, _ = carry
    return partitioning.any_shard((slots.sequence < num_sequences).any())

  def step(carry):
    step, slots, taken, completion = carry
    hidden, cache = read(
      slots.token[:, None],
      slots.padding,
      slots.cache,
      prompt_length + step % num_tokens,
      _locate(slots, step, prompt_length, num_tokens),
    )
    completion, token, ended = sample(
      completion,
      (slots.sequence, slots.length),
      step + 1,
      hidden[:, 0],
      slots.sequence == num_sequences,
    )
    slots = _Slots(
      jnp.where(ended, num_sequences, slots.sequence),
      slots.length + 1,
      token,
      slots.padding,
      cache,
    )
    return step + 1, *_refill(slots, taken, waiting), completion

  *_, completion = jax.lax.while_loop(
    is_running,
    step,
    (jnp.int32(0), *_refill(empty, jnp.int32(0), waiting), completion),
  )
  return completion


def _locate(
  slots: _Slots, step: Array, prompt_length: int, num_tokens: int
) -> attention.Positions:
  """Positions of the slots' last tokens, and of those in their caches."""
  own = prompt_length - slots.padding + slots.length - 1  # [S]
  prompt = jnp.arange(prompt_length)[None] - slots.padding[:, None]
  # How many steps ago a place of the ring was written; 0 for the token read.
  age = ((step - jnp.arange(num_tokens)) % num_tokens)[None]
  ring = jnp.where(age < slots.length[:, None], own[:, None] - age, -1)
  return attention.Positions(
    own[:, None], jnp.concatenate([prompt, ring], axis=1)
  )


def _refill(
  slots: _Slots, taken: Array, waiting: Waiting
) -> tuple[_Slots, Array]:
  """Fills empty slots with waiting sequences, of which some are taken."""
  none = len(waiting.sequences)

  def can_fill(slots, taken):
    return (taken < waiting.count) & (slots.sequence == none).any()

  def fill(carry):
    slots, taken = carry
    fills = can_fill(slots, taken)  # Or another shard does, see `any_shard`.
    slot = jnp.argmax(slots.sequence == none)
    sequence = waiting.sequences[taken]
    prompt = waiting.prompts[sequence]

    def put(every, own):
      return every.at[slot].set(jnp.where(fills, own, every[slot]))

    def copy(leaf, prompts):
      own = jax.lax.dynamic_slice_in_dim(prompts, prompt, 1)
      at = (slot, *[0] * (leaf.ndim - 1))
      before = jax.lax.dynamic_slice(leaf, at, own.shape)
      return jax.lax.dynamic_update_slice(
        leaf, jnp.where(fills, own, before), at
      )

    filled = _Slots(
      put(slots.sequence, sequence),
      put(slots.length, 1),
      put(slots.token, waiting.tokens[sequence]),
      put(slots.padding, waiting.padding[prompt]),
      jax.tree.map(copy, slots.cache, waiting.caches),
    )
    return filled, taken + fills.astype(jnp.int32)

  return jax.lax.while_loop(
    lambda carry: partitioning.any_shard(can_fill(*carry)),
    fill,
    (slots, taken),
  )
