r"""Trains a language model on a task that verifies itself, and evaluates it.

python -m experiments.train_language --workdir=DIR \
    --config=experiments/configs/language.py:addition \
    --config.algorithm=lco_mse

The policy begins with a supervised warm start, a run of its own in
DIR/warm_start, or with the end of another run (--config.init_from).
"""

import contextlib

from absl import flags

from experiments.common import command_line, training_run
from lco_jax.reporting import tables
from lco_jax.runs import run_directory
from lco_jax.trainers import language, language_training
from lco_jax.training import cpu_backend

_CONFIG = command_line.define_config()
command_line.define_distributed()


def main(stack: contextlib.ExitStack) -> None:
  """Trains, evaluates, and writes the run directory, locked on the stack."""
  with training_run.prepared():
    settings = command_line.read_settings(flags.FLAGS, _CONFIG.value)
    alone = not flags.FLAGS.distributed
    cpu_backend.divide_cores(*(language.shares(settings) if alone else (1,)))
    stack.enter_context(command_line.job(flags.FLAGS, settings))
    launch = training_run.make_launch(settings)
    prepared = language_training.prepare(stack, launch)
  with training_run.executed(launch) as launch:
    done = language_training.execute(launch, prepared)
  for cell, summary in done.reported:
    print(tables.format_language_run(summary))
    print(f"learning curve: {cell.workdir / run_directory.PICTURE}")


if __name__ == "__main__":
  command_line.run_with_stack(main)
