"""The stability map and the exact laboratory, as a user runs them."""

import csv

import pytest

from lco_jax.runs import run_directory
from tests import scripts

_SMALL = (
  "--config.algorithms=('ppo','lco_mse')",
  "--config.values=(1,2)",
  "--config.policy_learning_rates=(1e-3,1e30)",
  "--config.settings=num_seeds=2,total_steps=1024,num_envs=4,num_steps=32,"
  "hidden_sizes=(8,8),eval_episodes=1",
)


def _map(workdir, *flags):
  own = scripts.overridden(*_SMALL, *flags)
  return scripts.run("stability_map", f"--workdir={workdir}", *own)


def test_a_map_tells_what_became_of_every_run(tmp_path):
  workdir = tmp_path / "map"
  done = _map(workdir)
  assert done.returncode == 0, done.stderr
  assert "[4/4]" in done.stdout and " left)" in done.stdout
  for name in ("stability_map.png", "stability_map.svg", "stability_rows.png"):
    assert (workdir / name).stat().st_size > 10_000
  text = (workdir / "stability_map.md").read_text()
  assert text.strip() in done.stdout
  best, by_row = text.split("\n\n")
  assert len(best.splitlines()) == 2 + 2 and len(by_row.splitlines()) == 2 + 4
  assert "| difference from ppo | p | collapsed |" in by_row
  assert by_row.splitlines()[3].startswith("| 1 | lco_mse | ")
  with open(workdir / "map.csv") as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 2 * 2 * 2 * 2
  for row in rows:
    cell = workdir / row["algorithm"] / f"num_epochs_{row['num_epochs']}"
    logged = run_directory.read_metrics(
      cell / f"rate_{row['learning_rate']}", ["kl_old_new"]
    )["kl_old_new"][:, int(row["seed_index"])]
    too_high = row["learning_rate"] == "1e+30"
    assert row["faulted"] == str(int(too_high))
    assert row["collapsed"] == "1" or not too_high
    if not too_high:
      assert float(row["max_kl"]) == pytest.approx(logged.max(), rel=1e-6)
  # Again: nothing is left to run. More algorithms can be asked for.
  again = _map(workdir)
  assert again.returncode == 0 and "[1/" not in again.stdout
  (workdir / "ppo" / "num_epochs_2" / "rate_1e+30" / "summary.json").unlink()
  missing = _map(workdir)
  assert missing.returncode == 0 and "[1/1]" in missing.stdout
  alone = _map(workdir, "--config.against=lco_kld")
  assert "no differences" in alone.stdout and "lco_kld" in alone.stdout
  assert "difference from" not in (workdir / "stability_map.md").read_text()
  other = _map(workdir, "--config.settings=num_seeds=3")
  assert other.returncode == 2 and "settings" in other.complaint


@pytest.mark.parametrize(
  ("flag", "named"),
  [
    ("--config.algorithms=('ppo','ppo')", "algorithms"),
    ("--config.values=(1,1)", "values"),
    ("--config.base=nope.py:x", "nope.py"),
    ("--config.settings=x", "settings"),
    ("--config.policy_learning_rates=(0.0,)", "policy_learning_rates"),
    ("--jobs=0", "jobs"),
    ("--config.rows=nope", "nope"),
    ("--config.against=nope", "against"),
    ("--config.algorithms=('nope',)", "nope"),
    ("--config=experiments/configs/stability_map.py:nope", "nope"),
  ],
)
def test_bad_input_is_one_line(tmp_path, flag, named):
  done = _map(tmp_path / "map", flag)
  assert done.returncode == 2 and named in done.complaint
  assert not (tmp_path / "map").exists()


def test_a_row_that_cannot_be_is_named(tmp_path):
  done = _map(tmp_path / "map", "--config.values=(0,)")
  assert done.returncode == 1 and "num_epochs" in done.complaint


def test_the_exact_laboratory(tmp_path):
  done = scripts.run("exact_laboratory", f"--out={tmp_path / 'out'}")
  assert done.returncode == 0, done.stderr
  assert {path.name for path in (tmp_path / "out").iterdir()} == {
    "simplex.png",
    "gradient_norms.png",
    "moments.md",
    "signs.md",
  }
  assert "| reinforce | 1.000 | 1 |" in done.stdout
  wrong = scripts.run("exact_laboratory", "--out=/proc/nope")
  assert wrong.returncode == 2 and "/proc/nope" in wrong.complaint
