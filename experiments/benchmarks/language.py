"""The figures of `experiments.benchmark language`."""

import functools
import statistics

import jax
import jax.numpy as jnp

from experiments.common import timing
from lco_jax import tasks
from lco_jax.language import generation
from lco_jax.runs import runner, starts
from lco_jax.trainers import language
from lco_jax.trainers import run as run_lib
from lco_jax.training import placement
from lco_jax.training import program as program_lib

# Of the comparison of cached with uncached decoding.
_SEQUENCES, _PROMPT, _TOKENS = 32, 8, 64
_REPEATS = 7  # Of single programs.


def measure(settings: dict, num_updates: int, repeats: int) -> dict:
  """Whole updates, then generation and learning apart.

  Args:
    settings: of a language run.
    num_updates: of each run.
    repeats: runs; medians are returned.

  Returns:
    {name: figure}; tokens are those of completions, of all seeds.
  """
  run = language.build(settings)
  seeds = run_lib.seeds_of(settings)
  mesh = run_lib.make_mesh(settings, run.training)
  results = [
    runner.run(
      run.training,
      starts.begin(run.training, seeds, mesh),
      num_updates,
      writers=[],
      show_progress=False,
    )
    for _ in range(repeats)
  ]
  state = starts.begin(run.training, seeds, mesh).state

  def collect(state):
    step = functools.partial(program_lib.collect_step, run.training)
    return placement.each_seed(step)(state)

  compiled = placement.compile(
    collect,
    mesh,
    (placement.STATE,),
    (placement.STREAMS, placement.ROLLOUTS),
    state,
    long_reductions=True,
  )
  actor, samples = compiled(state)

  def learn(state, actor, samples):
    step = functools.partial(program_lib.learn_step, run.training)
    state, metrics = placement.each_seed(step)(state, actor, samples)
    return state, placement.gather_seeds(metrics, axis=0)

  learning = placement.compile(
    learn,
    mesh,
    (placement.STATE, placement.STREAMS, placement.ROLLOUTS),
    (placement.STATE, placement.EVERYWHERE),
    state,
    actor,
    samples,
    long_reductions=True,
  )
  tokens = int(jnp.sum(samples.mask))

  def median(name):
    return statistics.median(getattr(result, name) for result in results)

  per_update = run.training.steps_per_update * settings["num_seeds"]
  return {
    "updates_per_second": round(median("steps_per_second") / per_update, 2),
    "samples_per_second": round(median("steps_per_second"), 1),
    "generation_tokens_per_second": round(
      tokens / timing.measure(lambda: compiled(state), _REPEATS).median, 1
    ),
    "update_tokens_per_second": round(
      tokens
      / timing.measure(
        lambda: learning(state, actor, samples), _REPEATS
      ).median,
      1,
    ),
    "compile_seconds": round(median("compile_seconds"), 3),
    "train_seconds": round(median("train_seconds"), 3),
  }


def decoding(settings: dict) -> dict:
  """Decoding with the cache against reading everything again for each token.

  Args:
    settings: of a language run, for the model.
  """
  model = language.build(settings).model
  params = model.init(jax.random.key(0))
  prompt = jnp.full((_SEQUENCES, _PROMPT), 2, jnp.int32)
  padding = jnp.zeros(_SEQUENCES, jnp.int32)
  keys = jax.random.split(jax.random.key(1), _SEQUENCES)
  sampling = generation.Sampling()
  never = -1  # No token ends a sequence: all are of full length.

  def cached(params):
    return generation.generate(
      model,
      params,
      prompt,
      padding,
      keys,
      _TOKENS,
      never,
      sampling,
    ).tokens

  def uncached(params):
    uniform = jax.vmap(lambda k: jax.random.uniform(k, (_TOKENS,)))(keys)
    blank = jnp.full((_SEQUENCES, _TOKENS), tasks.PADDING, jnp.int32)

    def step(time, tokens):
      logits, _ = model.apply(
        params, jnp.concatenate([prompt, tokens], axis=1), padding
      )
      token, _ = generation.sample_token(
        logits[:, _PROMPT + time - 1], uniform[:, time], sampling
      )
      return tokens.at[:, time].set(token)

    return jax.lax.fori_loop(0, _TOKENS, step, blank)

  seconds = {}
  for name, function in (("cached", cached), ("uncached", uncached)):
    program = jax.jit(function).lower(params).compile()
    seconds[name] = (
      timing.measure(lambda p=program: p(params), _REPEATS).median / _TOKENS
    )
  return {
    "decoded_tokens": _TOKENS,
    "cached_ms_per_token": round(1e3 * seconds["cached"], 3),
    "uncached_ms_per_token": round(1e3 * seconds["uncached"], 3),
    "cache_speedup": round(seconds["uncached"] / seconds["cached"], 2),
  }
