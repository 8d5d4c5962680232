r"""Trains a verifier on pairs of completions that a task's verifier ranks.

python -m experiments.train_verifier --workdir=DIR \
    --config=experiments/configs/verifier.py:chain_sum

The model completes prompts as it is; a copy of it learns which completions are
better (--config.algorithm=qrm or dpo). DIR/model_SEED is what train_llm takes
as --config.verifier.
"""

import contextlib

from absl import flags

from experiments.common import command_line, huge_pages, training_run
from lco_jax.trainers import llm, llm_task, llm_training, verifier
from lco_jax.training import cpu_backend

_CONFIG = command_line.define_config()
command_line.define_distributed()
command_line.define_mesh()


def main(stack: contextlib.ExitStack) -> None:
  """Trains, evaluates, and writes the run directory, locked on the stack."""
  with training_run.prepared():
    settings = command_line.read_settings(flags.FLAGS, _CONFIG.value)
    cpu_backend.keep_memory()
    if flags.FLAGS.distributed:  # A process for each core.
      cpu_backend.divide_cores(1)
    stack.enter_context(command_line.job(flags.FLAGS, settings))
    # After all processes are joined: one of them may lack a file.
    settings = llm_task.identify_files(settings)
    launch = training_run.make_launch(settings)
    run = llm.build_verifier(settings, mesh=launch.mesh)
    prepared = llm_training.prepare(stack, launch, run)
  with training_run.executed(launch) as launch:
    done = verifier.execute(stack, launch, prepared)
  for _, summary in done.reported:
    _show(summary)


def _show(summary: dict) -> None:
  """Prints how often the verifier is right."""
  for split in ("validation", "test"):
    found = summary[split]
    if found["pairs"]:
      print(
        f"{split}: right about {found['mean']:.3f} of {found['pairs']}"
        f" held-out pairs, before {found['before']:.3f}"
      )
    else:
      print(f"{split}: no pairs, all completions are worth the same")


if __name__ == "__main__":
  huge_pages.restart()
  command_line.run_with_stack(main)
