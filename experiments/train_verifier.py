r"""Trains a verifier on pairs of completions that a task's verifier ranks.

python -m experiments.train_verifier --workdir=DIR \
    --config=experiments/configs/verifier.py:chain_sum

The model completes prompts as it is; a copy of it learns which completions are
better (--config.algorithm=qrm or dpo). DIR/model_SEED is what train_llm takes
as --config.verifier.
"""

import contextlib
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import flags

from experiments.builders import llm
from experiments.common import command_line, llm_training, training_run
from lco_jax import types
from lco_jax.language import generation, pairs, scoring, text_evaluation
from lco_jax.reporting import statistics
from lco_jax.runs import run_directory, runner
from lco_jax.training import cpu_backend

_CONFIG = command_line.define_config()
command_line.define_distributed()


def main(stack: contextlib.ExitStack) -> None:
  """Trains, evaluates, and writes the run directory, locked on the stack."""
  workdir = pathlib.Path(flags.FLAGS.workdir)
  with training_run.explained(workdir):
    settings = command_line.read_settings(flags.FLAGS, _CONFIG.value)
    cpu_backend.keep_memory()
    if flags.FLAGS.distributed:  # A process for each core.
      cpu_backend.divide_cores(1)
    stack.enter_context(command_line.job(flags.FLAGS, settings))
    run = llm.build_verifier(settings)
    examinations = llm_training.open_run(
      stack, workdir, settings, run, flags.FLAGS.resume
    )
  stop = command_line.StopSignal()
  scorer = stack.enter_context(llm_training.make_scorer(run, settings))
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


def _report(
  cell: training_run.Cell,
  run: llm.Run,
  result: runner.Result,
  examinations: Sequence[text_evaluation.Examination],
  scorer: scoring.Scorer,
) -> None:
  """Evaluates a cell's seeds; writes and shows what they came to."""
  settings = cell.settings
  learned = llm_training.policies(cell, run, result)
  summary = llm_training.described(settings, result)
  for examination in examinations:
    split = examination.split
    before, *after = _accuracies(
      examination, scorer, run.pretrained.params, learned, settings
    )
    found = [own["accuracy"] for own in after]
    summary[split] = {
      "pairs": before["pairs"],
      "before": before["accuracy"],
      **statistics.summarize(np.array(found, float)),
    }
    if before["pairs"]:
      print(
        f"{split}: right about {summary[split]['mean']:.3f} of"
        f" {before['pairs']} held-out pairs, before {before['accuracy']:.3f}"
      )
    else:
      print(f"{split}: no pairs, all completions are worth the same")
  run_directory.write_json(cell.workdir / "summary.json", summary)
  llm_training.export(cell, run, learned)


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
  reference = jax.device_put(reference)
  answers = text_evaluation.complete_problems(
    examination,
    reference,
    scorer,
    generation.Sampling(),
    range(examination.num_samples),
  )
  values = np.stack([answer.values for answer in answers])  # [G, Q]
  if settings["reward"] == "exact":  # As the pairs that were trained on.
    values = values >= 1
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

  found = [base, *(log_probs(jax.device_put(own))[0] for own in learned)]
  return [
    {"pairs": int(where.sum()), "accuracy": accuracy(own)} for own in found
  ]


if __name__ == "__main__":
  command_line.run_with_stack(main)
