r"""Trains a language model on a task that verifies itself, and evaluates it.

python -m experiments.train_language --workdir=DIR \
    --config=experiments/configs/language.py:addition \
    --config.algorithm=lco_mse

The policy begins with a supervised warm start, a run of its own in
DIR/warm_start, or with the end of another run (--config.init_from).
"""

import contextlib
import math
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from absl import flags

from experiments.builders import language
from experiments.common import command_line, training_run
from lco_jax import tasks, types
from lco_jax.language import evaluation, signals
from lco_jax.reporting import curves, statistics, tables
from lco_jax.runs import run_directory, runner
from lco_jax.training import cpu_backend

_CONFIG = command_line.define_config()
command_line.define_distributed()
_PASSES = (1, 8, 32)


def main(stack: contextlib.ExitStack) -> None:
  """Trains, evaluates, and writes the run directory, locked on the stack."""
  workdir = pathlib.Path(flags.FLAGS.workdir)
  warm_dir = workdir / "warm_start"
  with training_run.explained(workdir):
    settings = command_line.read_settings(flags.FLAGS, _CONFIG.value)
    alone = not flags.FLAGS.distributed
    prompts = math.gcd(settings["num_prompts"], settings["warm_start_prompts"])
    learners = training_run.num_learners(settings)
    shares = (learners, prompts) if alone else (1,)
    cpu_backend.divide_cores(*shares)
    stack.enter_context(command_line.job(flags.FLAGS, settings))
    run = language.build(settings)
    # Raises before anything is written.
    training_run.make_mesh(settings, run.training)
    supervised = settings["algorithm"] == language.WARM_START
    given, warm = _given(settings, run.task), None
    begins_here = not supervised and "policy" not in given
    if begins_here and settings["warm_start_updates"]:
      warm = settings | {
        "algorithm": language.WARM_START,
        "policy_learning_rates": [],
      }
      warm_run = language.build(warm)
      training_run.make_mesh(warm, warm_run.training)
    resume = flags.FLAGS.resume
    training_run.open_directory(stack, workdir, settings, resume)
    if warm:
      # A run may have been killed when it had but its own directory.
      resume = resume and (warm_dir / "config.json").exists()
      training_run.open_directory(stack, warm_dir, warm, resume)
  stop = command_line.StopSignal()
  before = None
  if warm:
    begun = training_run.train(
      warm_dir,
      warm,
      warm_run.training,
      warm_run.num_updates,
      should_stop=stop,
      resume=flags.FLAGS.resume,
      script_workdir=workdir,
    )
    given["policy"] = begun.params["policy"]
  if "policy" in given and jax.process_index() == 0:
    with training_run.explained(workdir):
      found = _evaluated(run, given["policy"], settings, "test")
      before = _summarized(found, settings, "test")
      print(f"before: {tables.format_accuracy(before)}", flush=True)
  result = training_run.train(
    workdir,
    settings,
    run.training,
    run.num_updates,
    should_stop=stop,
    given=given,
    resume=flags.FLAGS.resume,
    resume_update=flags.FLAGS.resume_update,
    profile=flags.FLAGS.profile,
  )
  if jax.process_index() == 0:
    with training_run.explained(workdir):
      _report(workdir, settings, run, result, before)


def _given(settings: dict, task: tasks.Task) -> dict[str, types.Params]:
  """The parts of the parameters that come from other runs.

  Raises:
    ValueError: if one is missing, or does not fit.
    CheckpointError: if one cannot be read.
  """
  given = {}
  if settings["init_from"] is not None:
    parts = language.params_of("init_from", task, settings)
    given["policy"] = parts["policy"]
  asks = settings["advantage"] in signals.FROM_VERIFIERS
  if asks and settings["verifier_from"] is None:
    raise ValueError(
      f"verifier_from must be set for advantage {settings['advantage']}"
    )
  if settings["verifier_from"] is not None:
    if not asks:
      raise ValueError(
        "verifier_from is for advantage"
        f" {' or '.join(signals.FROM_VERIFIERS)}, got {settings['advantage']}"
      )
    parts = language.params_of("verifier_from", task, settings)
    given["verifier"] = parts["policy"]
    if settings["advantage"] == "preference":
      given["verifier_reference"] = parts["reference"]
  return given


def _evaluated(
  run: language.Run, params: types.Params, settings: Mapping, split: str
) -> evaluation.Evaluation:
  return evaluation.evaluate(
    run.task,
    run.model,
    params,
    split=split,
    num_problems=settings["eval_problems"],
    num_samples=settings["eval_samples"],
    seed=settings["seed"],
  )


def _summarized(
  found: evaluation.Evaluation, settings: Mapping, split: str
) -> dict:
  """The evaluation's part of summary.json."""
  summary = statistics.summarize(found.greedy.mean(axis=1))
  return {
    "split": split,
    "problems": settings["eval_problems"],
    "samples": settings["eval_samples"],
    "greedy": summary["mean"],
    "pass_at_k": {
      str(k): statistics.summarize(found.pass_at_k(k))
      for k in _PASSES
      if k <= settings["eval_samples"]
    },
    "by_difficulty": {
      str(level): float(np.mean(scores))
      for level, scores in found.by_difficulty().items()
    },
    "examples": [list(example) for example in found.examples[0]],
    **summary,
  }


def _report(
  workdir: pathlib.Path,
  settings: dict,
  run: language.Run,
  result: runner.Result,
  before: dict | None,
) -> None:
  """Evaluates all learners; writes and shows what each cell came to."""
  found = {
    name: (split, _evaluated(run, result.params["policy"], settings, split))
    for name, split in (("validation", "validation"), ("evaluation", "test"))
  }
  for cell in training_run.cells(workdir, settings):
    own = {
      name: _summarized(scores.select_seeds(cell.learners), settings, split)
      for name, (split, scores) in found.items()
    }
    _report_cell(
      cell.workdir, cell.settings, run, result, {"before": before} | own
    )


def _report_cell(
  workdir: pathlib.Path,
  settings: Mapping,
  run: language.Run,
  result: runner.Result,
  evaluations: dict,
) -> None:
  """Writes summary.json and the picture, and shows the tables."""
  logged = run_directory.read_metrics(workdir, ["correct", "entropy"])
  last = -(-len(logged["correct"]) // 10)
  summary = {
    "task": run.task.name,
    "algorithm": settings["algorithm"],
    "learning_rate": language.learning_rate(settings),
    "num_seeds": settings["num_seeds"],
    "total_samples": result.total_steps,
    "compile_seconds": result.compile_seconds,
    "train_seconds": result.train_seconds,
    "samples_per_second": result.steps_per_second,
    "final_correct": statistics.summarize(logged["correct"][-last:].mean(0)),
    "final_entropy": statistics.summarize(logged["entropy"][-last:].mean(0)),
    **evaluations,
  }
  run_directory.write_json(workdir / "summary.json", summary)
  picture = workdir / "learning_curve.png"
  curves.save_learning_curve(
    picture,
    *curves.bin_returns(
      logged["env_steps"],
      logged["correct"],
      np.ones_like(logged["correct"]),
      gone=np.isnan(logged["correct"]),
    ),
    title=f"{settings['algorithm']} on {run.task.name}",
    x_label="samples",
    y_label="share of correct samples (training prompts)",
  )
  print(tables.format_language_run(summary))
  print(f"learning curve: {picture}")


if __name__ == "__main__":
  command_line.run_with_stack(main)
