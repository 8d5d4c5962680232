"""Tables: their content and their width."""

import numpy as np

from lco_jax.reporting import statistics, tables


def _scores(*per_seed):
  return statistics.summarize(np.array(per_seed))


def test_rows_are_a_markdown_table():
  lines = tables.format_markdown(
    [
      {
        "algorithm": "grpo",
        "score": tables.format_interval(10.25, -0.5, 1234.56),
      },
      {"algorithm": "ppo", "score": tables.format_interval(None, None, None)},
    ]
  ).splitlines()
  assert lines == [
    "| algorithm | score |",
    "| --- | --- |",
    "| grpo | 10.250 [-.500, 1,234.6] |",
    "| ppo | – [–, –] |",
  ]


def test_a_language_run_fits_a_terminal():
  """However long prompts and completions are."""
  evaluation = _scores(0.5, 0.7) | {
    "greedy": 0.6,
    "split": "test",
    "problems": 512,
    "samples": 32,
    "pass_at_k": {"1": _scores(0.4, 0.5), "8": _scores(0.8, 0.9)},
    "by_difficulty": {"1": 1.0, "2": 0.25},
    "examples": [["1+1=", "2", "3", False], ["x" * 300, "y" * 50, "y", True]],
  }
  shown = tables.format_language_run(
    {
      "task": "addition:3",
      "learning_rate": 1e-3,
      "algorithm": "lco_mse",
      "num_seeds": 2,
      "total_samples": 102_400,
      "compile_seconds": 12.3,
      "train_seconds": 60.4,
      "samples_per_second": 6782.0,
      "final_correct": _scores(0.7, 0.8),
      "before": evaluation,
      "evaluation": evaluation,
    }
  )
  lines = shown.splitlines()
  assert max(map(len, lines)) <= 80
  assert "1+1=" in shown and "3" in shown and "wrong" in shown
  (level,) = [line for line in lines if line.startswith("greedy by difficulty")]
  assert level.endswith("1: 1.00, 2: 0.25")
  (passes,) = [line.split() for line in lines if line.startswith("pass@8")]
  assert passes[1] == "0.85" and passes[-2:] == ["0.8", "0.9"]
  one = tables.format_accuracy(evaluation)
  assert one.endswith("0.6 (seeds: 0.5 0.7)") and len(one) <= 100


def test_completions_are_wrapped_and_not_cut():
  prompt, completion = "What is 1 + 1? " * 4, "the answer\nis 2 " * 6
  text = tables.format_completions([(prompt, "2", completion, True)])
  columns = [(line[:24], line[26:50]) for line in text.splitlines()[1:]]
  for index, whole in enumerate((prompt, completion)):
    words = " ".join(column[index] for column in columns).split()
    assert words == whole.split()
  assert max(map(len, text.splitlines())) <= 80
