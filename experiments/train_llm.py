"""Trains a pretrained language model on a task of reasoning-gym.

python -m experiments.train_llm --workdir=DIR \
    --config=experiments/configs/llm.py:chain_sum

--dry_run says what a run would take, and what of its settings does nothing.
"""

import contextlib
import json
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
import tqdm
from absl import flags

from experiments import command_line, llm_estimate, llm_run, stage
from lco_jax import (
  generation,
  pretrained,
  run_directory,
  runner,
  scoring,
  text_generation,
  text_rollout,
  types,
)
from lco_jax.reporting import curves, statistics, tables

_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Say what the run would take, and end."
)
_CONFIG = command_line.define_config(or_else="dry_run")
command_line.define_distributed()
# Completions are shown in so many of the updates.
_SHOWN = 20
_EVALUATION_STREAM = 30_000


def main() -> None:
  """Trains, evaluates, and writes the run directory."""
  with contextlib.ExitStack() as stack:
    _train(stack)


def _train(stack: contextlib.ExitStack) -> None:
  """Runs the script; what it holds of the run directory is on the stack."""
  workdir = pathlib.Path(flags.FLAGS.workdir or "")
  with stage.explained(workdir):
    settings = command_line.read_settings(_CONFIG.value)
    if not _DRY_RUN.value:
      stack.enter_context(command_line.job(settings))
    run = llm_run.build(settings)
    stage.placed(settings, run.training)  # Raises before anything is written.
    if _DRY_RUN.value:
      print(llm_estimate.estimate(settings, run))
      return
    stage.open_directory(stack, workdir, settings, flags.FLAGS.resume)
  stop = command_line.StopSignal()
  log = None

  def make_collector(where, seeds, update):
    nonlocal log
    first = jax.process_index() == 0
    if first:
      log = stack.enter_context(
        _CompletionLog(workdir, settings["num_updates"], update)
      )
    return text_rollout.TextCollector(
      run.asking,
      run.model,
      run.training,
      where,
      seeds,
      scoring.Scorer(
        run.asking.task,
        settings["scoring_workers"],
        settings["scoring_seconds"],
      ),
      update,
      **({"show": log} if first else {}),
    )

  given = jax.tree.map(
    lambda leaf: np.broadcast_to(leaf, (settings["num_seeds"], *leaf.shape)),
    dict(run.given),
  )
  before = None
  if jax.process_index() == 0 and not flags.FLAGS.resume:
    with stage.explained(workdir):
      found = _evaluated(run, run.pretrained.params, settings, "test")
      before = _summarized([found])
      run_directory.write_json(workdir / "before.json", before)
      print(f"before: {_accuracy(before)}", flush=True)
  result = stage.train(
    stack,
    workdir,
    settings,
    run.training,
    run.num_updates,
    should_stop=stop,
    given=given,
    resume_update=flags.FLAGS.resume_update,
    make_collector=make_collector,
    profile=flags.FLAGS.profile,
  )
  if jax.process_index() == 0:
    with stage.explained(workdir):
      for cell in stage.cells(workdir, settings):
        _report(cell, run, result)


class _CompletionLog(contextlib.AbstractContextManager):
  """Writes the first prompt's completions of each update, and shows some."""

  def __init__(self, workdir: pathlib.Path, num_updates: int, done: int):
    """Opens WORKDIR/completions.jsonl; what is of later updates is cut off."""
    path = workdir / "completions.jsonl"
    kept = []
    if done and path.exists():
      lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
      kept = [
        line
        for line in lines
        if line.endswith("\n") and json.loads(line)["update"] <= done
      ]
    # Held open for the whole run; __exit__ ends it.
    self._file = path.open("w", encoding="utf-8")
    self._file.writelines(kept)
    self._every = max(1, num_updates // _SHOWN)

  def __call__(self, update: int, examples: list[text_rollout.Example]):
    for example in examples:
      line = {
        "update": update,
        "question": example.question,
        "completion": example.completion,
        "reward": example.reward,
      }
      self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
    self._file.flush()
    if update == 1 or update % self._every == 0:
      shown = examples[0]
      tqdm.tqdm.write(
        f"update {update}: {shown.question!r} → {shown.completion!r}"
        f" ({shown.reward:g})"
      )

  def __exit__(self, *_):
    self._file.close()


def _evaluated(
  run: llm_run.Run, params: types.Params, settings: Mapping, split: str
) -> dict:
  """What a policy makes of a split: greedily, and by untempered samples."""
  asking = run.asking
  problems = [
    asking.task.problem(split, number)
    for number in range(settings["eval_problems"])
  ]
  prompts = [asking.prompt(problem["question"]) for problem in problems]
  completer = text_generation.Completer(
    run.model,
    asking.tokenizer.end,
    asking.completion_length,
    settings["eval_batch"],
  )
  params = jax.device_put(params)
  key = jax.random.fold_in(jax.random.key(settings["seed"]), _EVALUATION_STREAM)

  def scored(sampling, index):
    keys = jax.random.split(jax.random.fold_in(key, index), len(prompts))
    texts = [
      asking.tokenizer.decode(tokens)
      for tokens in completer.complete(params, prompts, keys, sampling)
    ]
    scores = scorer.collect(
      [
        scorer.submit(problem, text)
        for problem, text in zip(problems, texts, strict=True)
      ]
    )
    return texts, np.array([score.value >= 1 for score in scores])

  scorer = scoring.Scorer(
    asking.task, settings["scoring_workers"], settings["scoring_seconds"]
  )
  with contextlib.closing(scorer):
    texts, greedy = scored(generation.Sampling(temperature=0.0), 0)
    sampled = np.stack(
      [
        scored(generation.Sampling(), 1 + index)[1]
        for index in range(settings["eval_samples"])
      ]
    )
  return {
    "split": split,
    "problems": len(problems),
    "distinct_problems": len({problem["question"] for problem in problems}),
    "samples": settings["eval_samples"],
    "greedy": float(greedy.mean()),
    "sampled": float(sampled.mean()),
    "examples": [
      [problem["question"], problem["answer"], text, bool(right)]
      for problem, text, right in zip(
        problems[:5], texts[:5], greedy[:5], strict=True
      )
    ],
  }


def _summarized(found: list[dict]) -> dict:
  """The evaluation's part of summary.json, of several seeds."""
  return {
    **found[0],
    "greedy": statistics.summarize(np.array([own["greedy"] for own in found])),
    "sampled": statistics.summarize(
      np.array([own["sampled"] for own in found])
    ),
  }


def _accuracy(summary: Mapping) -> str:
  return (
    f"{summary['split']}: greedy {summary['greedy']['mean']:.3f}, sampled"
    f" {summary['sampled']['mean']:.3f}"
    f" ({summary['problems']} draws of {summary['distinct_problems']} questions"
    f" × {summary['samples']} samples)"
  )


def _report(cell: stage.Cell, run: llm_run.Run, result: runner.Result) -> None:
  """Evaluates a cell's seeds; writes and shows what they came to."""
  workdir, settings = cell.workdir, cell.settings
  policies = jax.tree.map(
    lambda leaf: leaf[cell.learners], result.params["policy"]
  )
  evaluations = {
    name: _summarized(
      [
        _evaluated(
          run,
          jax.tree.map(lambda leaf, seed=seed: leaf[seed], policies),
          settings,
          split,
        )
        for seed in range(settings["num_seeds"])
      ]
    )
    for name, split in (("validation", "validation"), ("evaluation", "test"))
  }
  before = workdir / "before.json"
  logged = run_directory.read_metrics(workdir, ["correct", "entropy"])
  last = -(-len(logged["correct"]) // 10)
  summary = {
    "task": settings["task"],
    "algorithm": settings["algorithm"],
    "model": settings["model"],
    "learning_rate": settings["policy_learning_rate"],
    "num_seeds": settings["num_seeds"],
    "total_samples": result.total_steps,
    "compile_seconds": result.compile_seconds,
    "train_seconds": result.train_seconds,
    "samples_per_second": result.steps_per_second,
    "final_correct": statistics.summarize(logged["correct"][-last:].mean(0)),
    "final_entropy": statistics.summarize(logged["entropy"][-last:].mean(0)),
    "before": json.loads(before.read_text()) if before.exists() else None,
    **evaluations,
  }
  run_directory.write_json(workdir / "summary.json", summary)
  picture = workdir / "learning_curve.png"
  curves.save_learning_curve(
    picture,
    *curves.binned(
      logged["env_steps"],
      logged["correct"],
      np.ones_like(logged["correct"]),
      gone=np.isnan(logged["correct"]),
    ),
    title=f"{settings['algorithm']} on {settings['task']}",
    x_label="samples",
    y_label="share of correct samples (training prompts)",
  )
  for name in ("before", "validation", "evaluation"):
    if summary[name]:
      print(f"{name:10s} {_accuracy(summary[name])}")
  print(
    tables.completions(
      [tuple(example) for example in evaluations["evaluation"]["examples"]]
    )
  )
  if settings["export"]:
    for index, seed in enumerate(stage.seeds_of(settings)):
      folder = workdir / f"model_{seed}"
      own = jax.tree.map(lambda leaf, i=index: leaf[i], policies)
      if not folder.exists():
        pretrained.export(run.pretrained, own, folder)
      print(f"model: {folder}")
  print(f"learning curve: {picture}")


if __name__ == "__main__":
  command_line.run(main)
