"""Replays the update that was not finite, and locates the fault.

python -m experiments.replay --workdir=DIR
"""

import pathlib

import jax
import numpy as np
from absl import flags

from experiments.common import command_line, plugins
from lco_jax.control import host_rollout
from lco_jax.runs import checkpointing, fault_replay, run_directory, runner
from lco_jax.trainers import control, language
from lco_jax.trainers import run as run_lib
from lco_jax.training import cpu_backend, placement

# Minibatches in the printed table, enough to see where the fault starts.
_MAX_ROWS = 20


def main() -> None:
  """Replays the update that was not finite.

  Exits with status 1 if it is finite this time: the fault is not reproduced.
  """
  workdir = pathlib.Path(flags.FLAGS.workdir)
  try:
    settings = run_directory.read_config(workdir)
    plugins.check_run(workdir)
    if not run_lib.can_replay(settings):
      raise ValueError(
        f"workdir {workdir}: runs of pretrained models cannot be replayed"
      )
    cpu_backend.divide_cores(1)
    blank = None
    if "task" in settings:
      training = language.build(settings).training
    else:
      own = control.build(settings)
      setup, training = own.setup, own.training
      if setup.on_host:
        blank = host_rollout.blank_trajectory(
          setup.environment,
          training.num_steps,
          training.num_streams,
          setup.return_discount,
        )
    mesh = placement.make_mesh(1, training.num_streams, jax.local_devices()[:1])
    seed, state, rollout, recorded = runner.load_fault(
      run_lib.fault_checkpoints(workdir, settings), training, mesh, blank
    )
  except (ValueError, OSError, checkpointing.CheckpointError) as error:
    raise command_line.ScriptError(error) from error
  record = fault_replay.replay(training, state, rollout)
  names = sorted(n for n in record.minibatches if n.endswith(("loss", "norm")))
  values = np.stack([record.minibatches[n].mean for n in names], axis=-1)
  print(
    f"update {int(state.update) + 1}, seed {seed}, when it stopped: {recorded}"
  )
  print("minibatch" + "".join(f"{name:>23}" for name in names))
  for index, row in enumerate(values[:_MAX_ROWS]):
    print(f"{index + 1:9d}" + "".join(f"{value:23.6g}" for value in row))
  found = fault_replay.find(record, training.counts)
  if found is None:
    raise command_line.ScriptError(
      "the update is finite when replayed here", command_line.FAILED
    )
  print(f"replayed: {found}")


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Directory of the run that stopped.")
  flags.mark_flag_as_required("workdir")
  command_line.run(main)
