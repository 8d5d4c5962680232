"""Measures whole training runs: compile time, steps per second, peak memory.

python -m experiments.benchmark control

prints a JSON line for one learner and one for eight, at the settings at which
PureJaxRL's PPO is timed: CartPole-v1, 4 environments, 128 steps, 4 epochs,
4 minibatches, two 64×64 tanh networks, 500,000 steps.
"""

import json
import os
import resource
import statistics
import subprocess
import sys

import jax
from absl import flags

from experiments import command_line, control_run
from experiments.configs import control as control_config
from lco_jax import cpu_backend, placement, runner

_NUM_SEEDS = (1, 8)
_SETTINGS = {
  "num_envs": 4,
  "num_steps": 128,
  "num_epochs": 4,
  "num_minibatches": 4,
  "hidden_sizes": (64, 64),
  "activation": "tanh",
  "total_steps": 500_000,
}

flags.DEFINE_integer("num_seeds", None, "Only so many learners; else 1 and 8.")
flags.DEFINE_string("algorithm", "lco_lch", "As of experiments.train_control.")
flags.DEFINE_integer("repeats", 3, "Runs of each; the medians are printed.")


def measure(num_seeds: int, algorithm: str, repeats: int) -> dict:
  """Trains to the end, repeatedly, in this process.

  Args:
    num_seeds: learners side by side.
    algorithm: as of experiments.train_control.
    repeats: runs.

  Raises:
    ValueError: if a setting is wrong.
  """
  config = control_config.get_config("CartPole-v1")
  config.update(_SETTINGS | {"algorithm": algorithm, "num_seeds": num_seeds})
  settings = command_line.resolve(config)
  cpu_backend.divide_cores(num_seeds)
  _, _, task, num_updates = control_run.build(settings)
  where = placement.place(num_seeds, task.num_streams, jax.local_devices())
  results = [
    runner.run(
      task,
      runner.begin(task, range(num_seeds), where),
      num_updates,
      writers=[],
      show_progress=False,
    )
    for _ in range(repeats)
  ]
  median = {
    name: round(statistics.median(getattr(r, name) for r in results), 3)
    for name in ("compile_seconds", "train_seconds", "steps_per_second")
  }
  used = where.devices[0].memory_stats() or {}  # None on CPU.
  return {
    "benchmark": "control",
    "algorithm": algorithm,
    "num_seeds": num_seeds,
    "total_steps": results[0].total_steps,
    "repeats": repeats,
    **median,
    "peak_memory_gib": round(
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3
    ),
    "peak_device_memory_gib": round(
      used.get("peak_bytes_in_use", 0) / 2**30, 3
    ),
    "devices": f"{len(where.devices)} {where.devices[0].device_kind}",
    "cores": os.cpu_count(),
    "jax": jax.__version__,
  }


def main(_: str) -> None:
  """Prints a line for each number of learners, each from its own process."""
  values = flags.FLAGS
  for name in ("num_seeds", "repeats"):
    value = getattr(values, name)
    if value is not None and value < 1:
      raise command_line.ScriptError(f"--{name} must be ≥ 1, got {value}")
  if values.num_seeds is not None:
    try:
      line = measure(values.num_seeds, values.algorithm, values.repeats)
    except ValueError as error:
      raise command_line.ScriptError(error) from error
    print(json.dumps(line), flush=True)
    return
  for num_seeds in _NUM_SEEDS:
    # A process of its own: peak memory is that of its whole life.
    command = [sys.executable, "-m", "experiments.benchmark", *sys.argv[1:]]
    done = subprocess.run([*command, f"--num_seeds={num_seeds}"], check=False)
    if done.returncode:
      sys.exit(done.returncode)


if __name__ == "__main__":
  command_line.run(main, choices=("control",))
