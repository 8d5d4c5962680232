"""Logits of given completions, read whole and without a cache."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.jit, static_argnums=0)
def read_logits(model, params, prompt, padding, completion):
  """Logits [..., C, V] before each token of completions [..., C]."""
  tokens = jnp.concatenate([prompt, completion], axis=-1)
  logits, _ = model.apply(
    params, tokens.reshape(-1, tokens.shape[-1]), padding.reshape(-1)
  )
  logits = logits[:, prompt.shape[-1] - 1 : -1]
  return logits.reshape(*completion.shape, -1)
