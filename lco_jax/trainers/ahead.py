"""Compiling the programs of a run for devices that are not there.

No weights are read or made: shapes are enough.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lco_jax import checks, networks, pretrained
from lco_jax.language import generation, group_generation, pairs, reading
from lco_jax.trainers import control, language, llm
from lco_jax.trainers import run as run_lib
from lco_jax.trainers import settings as settings_lib
from lco_jax.training import (
  accelerators,
  host_loop,
  placement,
  program,
  program_cost,
)

# Share of a chip's memory that must stay free.
SPARE = 0.1
_END = 2  # Any token: a program is the same for each.


class Program(NamedTuple):
  """A program of a run, to be compiled.

  Attributes:
    name: generation, update or chunk.
    traced: its trace.
    trips: most turns of its loops that do not tell theirs.
  """

  name: str
  traced: placement.Traced
  trips: int = 1


def list_programs(
  settings: Mapping,
  devices: Sequence[jax.Device],
  mesh: str | None,
  prompt_length: int,
  gather_weights: bool | None = None,
) -> Iterator[Program]:
  """Traces the programs that a run compiles.

  Args:
    settings: of a run of any training script.
    devices: to compile for.
    mesh: as of `run.Launch`.
    prompt_length: tokens of a prompt, for pretrained models.
    gather_weights: as of `run.Launch`.

  Raises:
    ValueError: naming the setting that is wrong.
  """
  sizes = None if mesh is None else placement.parse_sizes(mesh)
  if "model" in settings:
    yield from _trace_pretrained(
      settings, devices, sizes, prompt_length, gather_weights
    )
    return
  build = control.build if "environment" in settings else language.build
  training = build(settings).training
  if training.collect is None:
    raise ValueError("environment: it runs on the host, not on devices")
  learners = run_lib.num_learners(settings)
  own = placement.make_mesh(learners, training.num_streams, devices, sizes)
  if placement.divides_parameters(own.shape):
    raise ValueError("mesh: fsdp and tensor need a pretrained model")
  state = program.describe_state(training, learners, own)
  yield Program("chunk", program.trace_chunk(training, own, state, 1))


def _trace_pretrained(
  settings: Mapping,
  devices: Sequence[jax.Device],
  sizes: Mapping[str, int] | None,
  prompt_length: int,
  gather_weights: bool | None,
) -> Iterator[Program]:
  """Traces generation and update of a pretrained model."""
  checks.check_number("--prompt_length", prompt_length, at_least=1)
  config = pretrained.read_config(settings["model"])
  networks.check_divisible(config, sizes or {})
  config = dataclasses.replace(config, **llm.take_model_options(settings))
  if settings.get("base_format", llm.BASE_FORMATS[0]) != llm.BASE_FORMATS[0]:
    raise ValueError("base_format: only float32 is compiled ahead")
  if settings["chunk_tokens"] is None:
    chunk = reading.resolve_chunk(None, config.vocab_size, on_cpu=False)
    settings = {**settings, "chunk_tokens": chunk}
  model = networks.make_language_model(config)
  if settings["algorithm"] in pairs.VERIFIERS:
    training, completes = llm.make_verifier_training(settings, model)
  else:
    training, completes = llm.make_training(settings, model, model)
  seeds = settings["num_seeds"]
  mesh = placement.make_mesh(seeds, training.num_streams, devices, sizes)
  llm.check_placement(settings, mesh)
  state = program.describe_state(
    training, seeds, mesh, {"policy": _describe_params(model, seeds)}
  )
  asked = (
    jax.ShapeDtypeStruct(
      (seeds, settings["num_prompts"], prompt_length), jnp.int32
    ),
    jax.ShapeDtypeStruct((seeds, settings["num_prompts"]), jnp.int32),
  )
  generating = group_generation.GroupGeneration(
    model,
    training,
    completes,
    settings["completion_length"],
    (_END,),
    settings_lib.take(settings, generation.Sampling),
    llm.choose_gather_dtype(config, mesh, gather_weights),
    settings["generation_slots"],
  )
  generated = generating.trace(mesh, state, *asked)
  own_prompts = settings["num_prompts"] // placement.count_data_parts(mesh)
  yield Program("generation", generated, generating.count_steps(own_prompts))
  samples = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
    generated.stage.out_info[0],
  )
  yield Program(
    "update", host_loop.trace_learning(training, mesh, state, samples)
  )


def _describe_params(model: networks.LanguageModel, seeds: int) -> Any:
  """Shapes of the parameters of all seeds."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((seeds, *leaf.shape), leaf.dtype),
    jax.eval_shape(model.init, jax.random.key(0)),
  )


def compile_ahead(
  own: Program, chip: accelerators.Chip, num_devices: int
) -> dict[str, Any]:
  """Compiles a program and says what it takes of each chip.

  Args:
    own: the program.
    chip: that it is for.
    num_devices: that share it.

  Returns:
    Values for JSON; bytes and FLOPs are those of one chip.
  """
  began = time.perf_counter()
  try:
    compiled = own.traced.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    line = next(iter(str(error).splitlines()))
    return {"program": own.name, "fits": False, "compiler_says": line}
  seconds = time.perf_counter() - began
  memory = compiled.memory_analysis()
  # Results take the memory of donated arguments, so these count once.
  peak = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )
  flops = program_cost.count_flops(own.traced.stage.jaxpr.jaxpr, own.trips)
  flops /= num_devices
  collectives = program_cost.count_collectives(compiled.as_text(), own.trips)
  sent = sum(kind["bytes"] for kind in collectives.values())
  return {
    "program": own.name,
    "compile_seconds": round(seconds, 1),
    "argument_bytes": memory.argument_size_in_bytes,
    "temporary_bytes": memory.temp_size_in_bytes,
    "peak_bytes": peak,
    "chip_bytes": int(chip.memory),
    "fits": peak <= (1 - SPARE) * chip.memory,
    "flops": flops,
    "collectives": collectives,
    "roofline_seconds": {
      "products": flops / chip.flops,
      "collectives": sent / chip.link_bandwidth,
    },
  }


def suggest(settings: Mapping, program_name: str) -> list[str]:
  """Suggests changes for a program of a run that does not fit."""
  if "model" not in settings:
    return ["fewer num_envs or num_prompts, or more devices"]
  found = ["a larger product of fsdp and tensor in --mesh, or more chips"]
  if settings["dtype"] == "float32":
    found.append("dtype=bfloat16")
  if program_name == "generation":
    return [*found, "--nogather_weights", "fewer num_prompts or num_samples"]
  if not settings["rematerialize"]:
    found.append("rematerialize=True")
  if "num_microbatches" in settings:
    found.append("more num_microbatches")
  if settings.get("lora_rank") == 0:
    found.append("lora_rank=16, which needs no optimizer state for the model")
  return found
