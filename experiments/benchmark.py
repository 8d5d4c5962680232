"""Measures whole training runs: compile time, steps per second, peak memory.

python -m experiments.benchmark control
python -m experiments.benchmark language
python -m experiments.benchmark llm

prints a JSON line for one learner and one for several, or for each case.
control: at the settings at which PureJaxRL's PPO is timed, CartPole-v1, 4
environments, 128 steps, 4 epochs, 4 minibatches, two 64×64 tanh networks,
500,000 steps. language: addition, 2 layers of width 64, one step on 32 prompts
× 8 samples; also tokens per second of generation and of learning apart, and
what the cache is worth. llm: a pretrained model, completions of 24 tokens after
prompts of 64, beside PyTorch and transformers where they are installed;
completions of 4 to 64 tokens, with packed updates; and a loss alone, with the
logits of all tokens at once or of some at a time. Only if asked for:
--case="64 prompts x 8, 4 to 64 tokens, slots" (15 minutes), and losses of a
size for accelerators, --case="loss 128256 chunked" or dense.
"""

import json
import os
import resource
import statistics
import subprocess
import sys

import jax
from absl import flags

from experiments.benchmarks import language
from experiments.common import command_line, huge_pages
from lco_jax.runs import runner, starts
from lco_jax.trainers import control
from lco_jax.trainers import run as run_lib
from lco_jax.trainers import settings as settings_lib
from lco_jax.trainers.configs import control as control_config
from lco_jax.trainers.configs import language as language_config
from lco_jax.training import cpu_backend

_NUM_SEEDS = {"control": (1, 8), "language": (1, 4)}
_SETTINGS = {
  "num_envs": 4,
  "num_steps": 128,
  "num_epochs": 4,
  "num_minibatches": 4,
  "hidden_sizes": (64, 64),
  "activation": "tanh",
  "total_steps": 500_000,
}

_LANGUAGE_SETTINGS = {
  "num_prompts": 32,
  "num_samples": 8,
  "advantage": "group_relative",
}
_NUM_UPDATES = 200  # Of a language run.

flags.DEFINE_integer(
  "num_seeds", None, "Only so many learners; else 1 and 8 or 4."
)
flags.DEFINE_string("algorithm", "lco_lch", "As of the training scripts.")
flags.DEFINE_string("case", None, "Only this one of llm, as it is printed.")
flags.DEFINE_string("model", "smollm2", "Of llm, as of experiments.generate.")
flags.DEFINE_integer("repeats", 3, "Runs of each; the medians are printed.")


def measure(
  what: str, case: int | str, algorithm: str, repeats: int, model: str
) -> dict:
  """Trains to the end, repeatedly, in this process; or steps of it.

  Args:
    what: `control`, `language` or `llm`.
    case: learners side by side; of `llm` a case of `benchmarks.llm`.
    algorithm: as of the training scripts.
    repeats: runs, or steps.
    model: of `llm`.

  Raises:
    ValueError: if a setting is wrong.
  """
  name = "case" if what == "llm" else "num_seeds"
  chosen = {"algorithm": algorithm, name: case}
  if what == "llm":
    from experiments.benchmarks import llm  # Of packages that others need not.

    figures = llm.measure(case, model, algorithm, repeats)
  elif what == "control":
    config = control_config.get_config("CartPole-v1")
    config.update(_SETTINGS | chosen)
    settings = settings_lib.resolve(config)
    cpu_backend.divide_cores(case)
    figures = _control(settings, repeats)
  else:
    config = language_config.get_config("addition")
    config.update(chosen | _LANGUAGE_SETTINGS)
    settings = settings_lib.resolve(config)
    cpu_backend.divide_cores(case, settings["num_prompts"])
    figures = language.measure(settings, _NUM_UPDATES, repeats)
    if case == 1:
      figures |= language.decoding(settings)
  device = jax.local_devices()[0]
  used = device.memory_stats() or {}  # None on CPU.
  return {
    "benchmark": what,
    **chosen,
    "repeats": repeats,
    **figures,
    "peak_memory_gib": round(
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3
    ),
    "peak_device_memory_gib": round(
      used.get("peak_bytes_in_use", 0) / 2**30, 3
    ),
    "devices": f"{jax.local_device_count()} {device.device_kind}",
    "cores": os.cpu_count(),
    "jax": jax.__version__,
  }


def _control(settings: dict, repeats: int) -> dict:
  """Medians of whole runs."""
  run = control.build(settings)
  seeds = run_lib.seeds_of(settings)
  mesh = run_lib.make_mesh(settings, run.training)
  results = [
    runner.run(
      run.training,
      starts.begin(run.training, seeds, mesh),
      run.num_updates,
      writers=[],
      show_progress=False,
    )
    for _ in range(repeats)
  ]
  median = {
    name: round(statistics.median(getattr(r, name) for r in results), 3)
    for name in ("compile_seconds", "train_seconds", "steps_per_second")
  }
  return {"total_steps": results[0].total_steps, **median}


def main(what: str) -> None:
  """Prints a line for each case, each from a process of its own."""
  values = flags.FLAGS
  for name in ("num_seeds", "repeats"):
    value = getattr(values, name)
    if value is not None and value < 1:
      raise command_line.ScriptError(f"--{name} must be ≥ 1, got {value}")
  given, cases = "num_seeds", _NUM_SEEDS.get(what)
  if what == "llm":
    from experiments.benchmarks import llm

    given, cases = "case", llm.cases()
  case = getattr(values, given)
  if case is not None:
    if what == "llm":  # As in runs; PyTorch has it, too.
      huge_pages.restart()
    try:
      line = measure(what, case, values.algorithm, values.repeats, values.model)
    except ValueError as error:
      raise command_line.ScriptError(error) from error
    print(json.dumps(line), flush=True)
    return
  for case in cases:
    # A process of its own: peak memory is that of its whole life.
    command = [sys.executable, "-m", "experiments.benchmark", *sys.argv[1:]]
    done = subprocess.run([*command, f"--{given}={case}"], check=False)
    if done.returncode:
      sys.exit(done.returncode)


if __name__ == "__main__":
  command_line.run(main, choices=(*_NUM_SEEDS, "llm"))
