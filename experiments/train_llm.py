r"""Trains a pretrained language model on a task of reasoning-gym.

python -m experiments.train_llm --workdir=DIR \
    --config=experiments/configs/llm.py:chain_sum

--dry_run says what a run would take, and what of its settings does nothing.
"""

import contextlib

from absl import flags

from experiments.common import command_line, huge_pages, training_run
from lco_jax.reporting import tables
from lco_jax.runs import run_directory
from lco_jax.trainers import llm, llm_estimate, llm_task, llm_training
from lco_jax.trainers import run as run_lib
from lco_jax.training import cpu_backend

_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Say what the run would take, and end."
)
_CONFIG = command_line.define_config(or_else="dry_run")
command_line.define_distributed()
command_line.define_mesh()


def main(stack: contextlib.ExitStack) -> None:
  """Trains, evaluates, and writes the run directory, locked on the stack."""
  with training_run.prepared():
    settings = command_line.read_settings(flags.FLAGS, _CONFIG.value)
    cpu_backend.keep_memory()
    if flags.FLAGS.distributed:  # A process for each core.
      cpu_backend.divide_cores(1)
    if _DRY_RUN.value:
      run = llm.build(settings, mesh=flags.FLAGS.mesh)
      mesh = run_lib.make_mesh(settings, run.training, flags.FLAGS.mesh)
      llm.check_placement(settings, mesh)
      print(llm_estimate.estimate(settings, run, mesh))
      return
    stack.enter_context(command_line.job(flags.FLAGS, settings))
    # After all processes are joined: one of them may lack a file.
    settings = llm_task.identify_files(settings)
    launch = training_run.make_launch(settings)
    prepared = llm_training.prepare(
      stack, launch, llm.build(settings, mesh=launch.mesh)
    )
  with training_run.executed(launch) as launch:
    done = llm_training.execute(stack, launch, prepared)
  for cell, summary in done.reported:
    for name in ("before", "validation", "evaluation"):
      if summary[name]:
        before = "before, " if name == "before" else ""
        print(f"{before}{llm_training.format_accuracy(summary[name])}")
    print(
      tables.format_completions(
        [tuple(example) for example in summary["evaluation"]["examples"]]
      )
    )
    print(f"learning curve: {cell.workdir / run_directory.PICTURE}")


if __name__ == "__main__":
  huge_pages.restart()
  command_line.run_with_stack(main)
