"""Training of verifiers of pretrained models, on pairs of completions."""

import contextlib
from collections.abc import Mapping

import jax
import numpy as np

from lco_jax import types
from lco_jax.language import generation, pairs, scoring, text_evaluation
from lco_jax.reporting import statistics
from lco_jax.runs import run_directory, runner
from lco_jax.trainers import llm_training
from lco_jax.trainers import run as run_lib


def execute(
  stack: contextlib.ExitStack,
  launch: run_lib.Launch,
  prepared: llm_training.Prepared,
) -> run_lib.Outcome:
  """Trains and evaluates a verifier, and writes what it came to.

  Args:
    stack: ends the processes that score.
    launch: of the run.
    prepared: from `llm_training.prepare`.

  Raises:
    Exceptions as of `llm_training.execute`.
  """
  scorer = stack.enter_context(
    llm_training.make_scorer(prepared.run, launch.settings)
  )
  started, result = llm_training.train(stack, launch, prepared.run, scorer)
  reported = []
  if llm_training.takes_part(result.params):
    with run_lib.input_errors():
      reported = [
        (cell, _report(launch, cell, prepared, result, scorer))
        for cell in run_lib.cells(launch.workdir, launch.settings)
      ]
  return run_lib.make_outcome(started, result, reported)


def _report(
  launch: run_lib.Launch,
  cell: run_lib.Cell,
  prepared: llm_training.Prepared,
  result: runner.Result,
  scorer: scoring.Scorer,
) -> dict:
  """Evaluates a cell's seeds; writes and returns their summary."""
  settings, run = cell.settings, prepared.run
  learned = llm_training.list_policies(settings, run, result.params)
  summary = llm_training.described(settings, result)
  for examination in prepared.examinations:
    before, *after = _accuracies(
      examination, scorer, run.pretrained.params, learned, settings
    )
    found = [own["accuracy"] for own in after]
    summary[examination.split] = {
      "pairs": before["pairs"],
      "before": before["accuracy"],
      **statistics.summarize(np.array(found, float)),
    }
  llm_training.export(launch, cell, run, learned)
  if cell.workdir is not None and jax.process_index() == 0:
    # Last: with it the run is complete.
    run_directory.write_json(cell.workdir / "summary.json", summary)
  return summary


def _accuracies(
  examination: text_evaluation.Examination,
  scorer: scoring.Scorer,
  reference: types.Params,
  learned: list[types.Params],
  settings: Mapping,
) -> list[dict]:
  """How often each policy scores the better completion of a pair higher.

  Pairs are of completions of one question by the reference, of which one is
  worth more by the task's own verifier. The first policy is the reference.
  """
  place = examination.completer.place
  reference = place(reference)
  answers = text_evaluation.complete_problems(
    examination,
    reference,
    scorer,
    generation.Sampling(),
    range(examination.num_samples),
  )
  # As the pairs that were trained on are: [G, Q].
  scores = np.stack([answer.values for answer in answers])
  values = examination.asking.reward(scores[None])[0]
  scored = ~np.stack([answer.failed for answer in answers])
  where = (values[:, None] > values[None]) & scored[:, None] & scored[None]
  said = [answer.tokens for answer in answers]

  def log_probs(params):
    return examination.completer.log_probs(params, examination.prompts, said)

  base, mask = log_probs(reference)

  def accuracy(own):
    score = np.asarray(
      pairs.score_completions(settings["algorithm"], own, base, mask)
    )
    better = score[:, None] > score[None]
    level = score[:, None] == score[None]
    right = better + 0.5 * level  # By chance, where it cannot tell.
    return float(right[where].mean()) if where.any() else None

  found = [base, *(log_probs(place(own))[0] for own in learned)]
  return [
    {"pairs": int(where.sum()), "accuracy": accuracy(own)} for own in found
  ]
