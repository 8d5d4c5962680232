"""The comparison of algorithms, as a user runs it."""

import json

import pytest

from tests import scripts

_SMALL = (
  "num_seeds=2",
  "num_updates=4",
  "learning_rate_warmup=1",
  "warm_start_updates=4",
  "warm_start_prompts=4",
  "num_prompts=4",
  "num_samples=4",
  "num_layers=1",
  "width=8",
  "num_heads=2",
  "num_kv_heads=1",
  "mlp_width=8",
  "eval_problems=4",
  "eval_samples=1",
)


def _compare(workdir, *flags):
  return scripts.run(
    "compare_language",
    f"--workdir={workdir}",
    "--tasks=parity",
    "--algorithms=grpo",
    "--learning_rates=1e-3,1e-2",
    *(f"--setting={x}" for x in _SMALL),
    *flags,
  )


def test_a_table_of_what_was_best_on_validation_problems(tmp_path):
  workdir = tmp_path / "comparison"
  done = _compare(workdir)
  assert done.returncode == 0, done.stderr
  table = (workdir / "comparison.md").read_text()
  assert table.strip() in done.stdout
  _, _, before, best = table.strip().splitlines()
  assert before.startswith("| parity | warm start |")
  runs = workdir / "parity" / "grpo" / "rates_0.001_0.01"
  found = {
    rate: json.loads((runs / f"rate_{rate}" / "summary.json").read_text())
    for rate in ("0.001", "0.01")
  }
  rate = max(found, key=lambda r: found[r]["validation"]["greedy"])
  assert best.startswith(f"| parity | grpo | {rate} |")
  rows = (workdir / "comparison.csv").read_text().splitlines()
  names = rows[0].split(",")
  assert "pass@1_iqm" in names and "pass@8_iqm" not in names
  last = dict(zip(names, rows[2].split(","), strict=True))
  assert float(last["greedy_iqm"]) == found[rate]["evaluation"]["iqm"]
  # Again: nothing is left to run.
  again = _compare(workdir)
  assert again.returncode == 0 and "[1/" not in again.stdout
  other = _compare(workdir, "--setting=beta=2.0")
  assert other.returncode == 2 and "settings" in other.complaint


@pytest.mark.parametrize(
  ("flag", "named"),
  [
    ("--tasks=nope", "nope"),
    ("--tasks=parity,parity", "tasks"),
    ("--algorithms=nope", "nope"),
    ("--learning_rates=x", "learning_rates"),
    ("--setting=beta", "setting"),
    ("--jobs=0", "jobs"),
  ],
)
def test_bad_input_is_one_line(tmp_path, flag, named):
  done = _compare(tmp_path / "comparison", flag)
  assert done.returncode == 2 and named in done.complaint
  assert not (tmp_path / "comparison").exists()


def test_a_run_that_fails_is_named(tmp_path):
  done = _compare(tmp_path / "comparison", "--setting=num_layers=0")
  assert done.returncode == 1 and "num_layers" in done.complaint
