r"""Trains a policy for control and evaluates it.

python -m experiments.train_control --workdir=DIR \
    --config=experiments/configs/control.py:CartPole-v1 \
    --config.algorithm=lco_mse
"""

import contextlib

from absl import flags

from experiments.common import command_line, training_run
from lco_jax.reporting import tables
from lco_jax.runs import run_directory
from lco_jax.trainers import control
from lco_jax.trainers import run as run_lib
from lco_jax.training import cpu_backend

_CONFIG = command_line.define_config()
command_line.define_distributed()


def main(stack: contextlib.ExitStack) -> None:
  """Trains, evaluates, and writes the run directory, locked on the stack."""
  with training_run.prepared():
    settings = command_line.read_settings(flags.FLAGS, _CONFIG.value)
    alone = not flags.FLAGS.distributed
    cpu_backend.divide_cores(run_lib.num_learners(settings) if alone else 1)
    stack.enter_context(command_line.job(flags.FLAGS, settings))
    launch = training_run.make_launch(settings)
    run = control.prepare(stack, launch)
  with training_run.executed(launch) as launch:
    done = control.execute(stack, launch, run)
  for cell, summary in done.reported:
    print(tables.format_run(summary))
    print(f"learning curve: {cell.workdir / run_directory.PICTURE}")


if __name__ == "__main__":
  command_line.run_with_stack(main)
