r"""Trains a pretrained language model on a task of reasoning-gym.

python -m experiments.train_llm --workdir=DIR \
    --config=experiments/configs/llm.py:chain_sum

--dry_run says what a run would take, and what of its settings does nothing.
"""

import contextlib
import json
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import flags

from experiments.builders import llm, llm_estimate
from experiments.common import command_line, llm_training, training_run
from lco_jax import types
from lco_jax.language import scoring, text_evaluation
from lco_jax.reporting import curves, statistics, tables
from lco_jax.runs import run_directory, runner
from lco_jax.training import cpu_backend, placement

_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Say what the run would take, and end."
)
_CONFIG = command_line.define_config(or_else="dry_run")
command_line.define_distributed()


def main(stack: contextlib.ExitStack) -> None:
  """Trains, evaluates, and writes the run directory, locked on the stack."""
  workdir = pathlib.Path(flags.FLAGS.workdir or "")
  with training_run.explained(workdir):
    settings = command_line.read_settings(flags.FLAGS, _CONFIG.value)
    cpu_backend.keep_memory()
    if flags.FLAGS.distributed:  # A process for each core.
      cpu_backend.divide_cores(1)
    if not _DRY_RUN.value:
      stack.enter_context(command_line.job(flags.FLAGS, settings))
    run = llm.build(settings)
    if _DRY_RUN.value:
      llm.check_placement(
        settings, training_run.make_mesh(settings, run.training)
      )
      print(llm_estimate.estimate(settings, run))
      return
    examinations = llm_training.open_run(
      stack, workdir, settings, run, flags.FLAGS.resume
    )
  stop = command_line.StopSignal()
  scorer = stack.enter_context(llm_training.make_scorer(run, settings))
  with training_run.explained(workdir):
    # A run may have been killed before it was evaluated, but not trained since.
    # All processes do the same, or some would wait for others for too long.
    saved = training_run.checkpoints(workdir, settings).steps()
    (trained,) = placement.any_process(bool(saved))
    if not trained:
      before = _summarize(examinations[1], [run.pretrained.params], scorer)
      if jax.process_index() == 0:
        run_directory.write_json(workdir / "before.json", before)
        print(f"before: {_accuracy(before)}", flush=True)
  result = llm_training.train(
    stack,
    workdir,
    settings,
    run,
    scorer,
    stop,
    resume=flags.FLAGS.resume,
    resume_update=flags.FLAGS.resume_update,
    profile=flags.FLAGS.profile,
  )
  if jax.process_index() == 0:
    with training_run.explained(workdir):
      for cell in training_run.cells(workdir, settings):
        _report(cell, run, result, examinations, scorer)


def _summarize(
  examination: text_evaluation.Examination,
  policies: Sequence[types.Params],
  scorer: scoring.Scorer,
) -> dict:
  """Evaluates policies of several seeds: a part of summary.json."""
  found = [
    text_evaluation.evaluate(examination, own, scorer) for own in policies
  ]
  problems = examination.problems
  return {
    "split": examination.split,
    "problems": len(problems),
    "distinct_problems": len({problem["question"] for problem in problems}),
    "samples": examination.num_samples,
    "scoring_failed": sum(own.num_failed for own in found),
    "greedy": statistics.summarize(
      np.array([own.greedy.mean() for own in found])
    ),
    "sampled": statistics.summarize(
      np.array([own.sampled.mean() for own in found])
    ),
    "examples": [
      [problem["question"], problem["answer"], text, bool(right)]
      for problem, text, right in zip(
        problems[:5], found[0].texts[:5], found[0].greedy[:5], strict=True
      )
    ],
  }


def _accuracy(summary: Mapping) -> str:
  failed = summary["scoring_failed"]
  note = f"; {failed} could not be scored" if failed else ""
  return (
    f"{summary['split']}: greedy {summary['greedy']['mean']:.3f}, sampled"
    f" {summary['sampled']['mean']:.3f}"
    f" ({summary['problems']} draws of {summary['distinct_problems']} questions"
    f" × {summary['samples']} samples){note}"
  )


def _report(
  cell: training_run.Cell,
  run: llm.Run,
  result: runner.Result,
  examinations: Sequence[text_evaluation.Examination],
  scorer: scoring.Scorer,
) -> None:
  """Evaluates a cell's seeds; writes and shows what they came to."""
  workdir, settings = cell.workdir, cell.settings
  learned = llm_training.policies(cell, run, result)
  evaluations = {
    name: _summarize(examination, learned, scorer)
    for name, examination in zip(
      ("validation", "evaluation"), examinations, strict=True
    )
  }
  before = workdir / "before.json"
  logged = run_directory.read_metrics(
    workdir, ["first_visit_correct", "first_visits", "entropy"]
  )
  # Prompts that are met again are those that are not solved.
  correct = logged["first_visit_correct"], logged["first_visits"]
  last = -(-len(logged["entropy"]) // 10)
  summary = {
    **llm_training.described(settings, result),
    "samples_per_second": result.steps_per_second,
    "final_correct": statistics.summarize(curves.final_return(*correct)),
    "final_entropy": statistics.summarize(logged["entropy"][-last:].mean(0)),
    "before": json.loads(before.read_text()) if before.exists() else None,
    **evaluations,
  }
  run_directory.write_json(workdir / "summary.json", summary)
  picture = workdir / "learning_curve.png"
  curves.save_learning_curve(
    picture,
    *curves.bin_returns(
      logged["env_steps"], *correct, gone=np.isnan(logged["entropy"])
    ),
    title=f"{settings['algorithm']} on {settings['task']}",
    x_label="samples",
    y_label="share of correct samples (training prompts when first met)",
  )
  for name in ("before", "validation", "evaluation"):
    if summary[name]:
      print(f"{name:10s} {_accuracy(summary[name])}")
  print(
    tables.format_completions(
      [tuple(example) for example in evaluations["evaluation"]["examples"]]
    )
  )
  llm_training.export(cell, run, learned)
  print(f"learning curve: {picture}")


if __name__ == "__main__":
  command_line.run_with_stack(main)
