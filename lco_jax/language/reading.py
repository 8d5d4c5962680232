"""Reading completions with a policy, without holding all logits at once.

Functions take the model of a policy and its parameters, completions [G, N], of
which they read prompt, padding and action, and `chunk_tokens`: tokens whose
logits are held at a time, 0 for all.

Axes: samples G, prompts N, tokens C, known tokens K.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import networks, numerics, types
from lco_jax.language import data, generation
from lco_jax.training import rows

# Bytes of logits at a time, if the number of tokens is not set: on CPU, logits
# that stay near its cores; elsewhere, enough to be worth a pass over the output
# layer.
_CPU_BYTES, _ACCELERATOR_BYTES = 2**25, 2**30


def resolve_chunk(
  chunk_tokens: int | None, vocab_size: int, on_cpu: bool | None = None
) -> int:
  """Tokens whose logits are held at a time; 0 for all.

  Args:
    chunk_tokens: the setting; None for as many as take about 32 MiB, or 1 GiB
      on accelerators.
    vocab_size: entries of a token's logits.
    on_cpu: whether the devices are CPUs; None for those of this process.
  """
  if chunk_tokens is not None:
    return chunk_tokens
  if on_cpu is None:
    on_cpu = jax.default_backend() == "cpu"
  size = _CPU_BYTES if on_cpu else _ACCELERATOR_BYTES
  return max(1, size // (4 * vocab_size))


def read_hidden(
  model: networks.LanguageModel,
  params: types.Params,
  completions: data.Samples | data.TokenBatch,
) -> Array:
  """Final hidden states from which a model chooses each token.

  A prompt is read once for all of its samples.

  Returns:
    float[G, N, C, W].
  """
  hidden = generation.completion_hidden(
    model,
    params,
    completions.prompt[0],
    completions.padding[0],
    rows.flatten(completions.action),
  )
  return rows.unflatten(hidden, len(completions.action))


def map_tokens(
  function: Callable[[Any], Any], tree: Any, chunk_tokens: int
) -> Any:
  """Maps a function of tokens over completions, some tokens at a time.

  Args:
    function: pytree of arrays [T, ...] → pytree of arrays [T, ...].
    tree: arrays [G, N, C, ...].
    chunk_tokens: T at most; 0 for all tokens at once.

  Returns:
    Arrays [G, N, C, ...].
  """
  samples, _, length = jax.tree.leaves(tree)[0].shape[:3]
  tokens = jax.tree.map(
    lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows.flatten(tree)
  )
  num_tokens = len(jax.tree.leaves(tokens)[0])
  size = rows.fit_chunks(num_tokens, chunk_tokens or num_tokens)
  if size >= num_tokens:
    found = function(tokens)
  else:
    found = jax.lax.map(function, rows.split_chunks(tokens, size))
    found = rows.join_chunks(found, num_tokens)
  found = jax.tree.map(
    lambda leaf: leaf.reshape(-1, length, *leaf.shape[1:]), found
  )
  return rows.unflatten(found, samples)


def read_log_prob(
  model: networks.LanguageModel,
  params: types.Params,
  completions: data.Samples | data.TokenBatch,
  chunk_tokens: int,
) -> Array:
  """log π of the tokens of completions.

  Its gradient computes the logits of each chunk again.

  Returns:
    float[G, N, C], in nats.
  """

  def read(tokens):
    hidden, action = tokens
    return numerics.action_log_prob(model.head(params, hidden), action)

  hidden = read_hidden(model, params, completions)
  return map_tokens(
    jax.checkpoint(read), (hidden, completions.action), chunk_tokens
  )


def read_known_log_probs(
  model: networks.LanguageModel,
  params: types.Params,
  completions: data.Samples,
  known: Array,
  chunk_tokens: int,
) -> Array:
  """log π of some tokens in each place of completions.

  The tokens are `known` int32[G, N, C, K].

  Returns:
    float[G, N, C, K], in nats.
  """

  def read(tokens):
    hidden, known = tokens
    log_probs = jax.nn.log_softmax(model.head(params, hidden))
    return jnp.take_along_axis(log_probs, known, axis=-1)

  hidden = read_hidden(model, params, completions)
  return map_tokens(read, (hidden, known), chunk_tokens)


class LikelyTokens(NamedTuple):
  """A policy's likeliest tokens in each place, behind the sampled one.

  Attributes:
    tokens: int32[G, N, C, 1 + K]; the sampled token comes first, and again if
      it is among the likeliest.
    log_prob: float[G, N, C, 1 + K], the policy's.
  """

  tokens: Array
  log_prob: Array


def find_likely_tokens(
  model: networks.LanguageModel,
  params: types.Params,
  samples: data.Samples,
  count: int,
  chunk_tokens: int,
) -> LikelyTokens:
  """Finds the K likeliest tokens of the policy that sampled.

  There are K = `count` in each place of `samples`, of which the hidden states
  are read.
  """

  def find(tokens):
    hidden, action = tokens
    log_probs = jax.nn.log_softmax(model.head(params, hidden))
    values, tokens = jax.lax.top_k(log_probs, min(count, log_probs.shape[-1]))
    own = numerics.select_action(log_probs, action)
    return LikelyTokens(
      jnp.concatenate([action[:, None], tokens], axis=-1),
      jnp.concatenate([own[:, None], values], axis=-1),
    )

  return map_tokens(find, (samples.hidden, samples.action), chunk_tokens)
