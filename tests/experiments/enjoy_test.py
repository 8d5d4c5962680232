"""Playing a trained policy, with the numbers of its summary."""

import json

import pytest

import lco_jax
from tests import scripts

pytestmark = [
  pytest.mark.third_party,  # optax and gymnax.
  pytest.mark.xdist_group("enjoy"),
]
PIL = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(directory, summary) of a run in an environment that can be drawn."""
  where = tmp_path_factory.mktemp("enjoy") / "run"
  done = lco_jax.train(
    "Catch-bsuite",
    "lco_mse",
    num_seeds=2,
    total_steps=2048,
    num_envs=8,
    num_steps=16,
    eval_episodes=4,
    normalize_observations=True,
    workdir=where,
    show_progress=False,
  )
  return where, done.summary


def _returns(stdout):
  return [
    float(line.split()[2])
    for line in stdout.splitlines()
    if line.startswith("seed ")
  ]


def test_returns_are_those_of_the_summary(run):
  where, summary = run
  for flags, name in (
    ([], "evaluation"),
    (["--sampled"], "evaluation_sampled"),
  ):
    done = scripts.run("enjoy", f"--run={where}", *flags)
    assert done.returncode == 0, done.stderr
    assert _returns(done.stdout) == pytest.approx(
      summary[name]["per_seed"], abs=0.005
    )
  summary = json.loads((where / "summary.json").read_text())
  assert summary["evaluation"]["episodes"] == 4


def test_an_episode_is_drawn(run, tmp_path):
  where, summary = run
  out = tmp_path / "episode.gif"
  done = scripts.run(
    "enjoy", f"--run={where}", "--seed=1", "--episodes=2", f"--video={out}"
  )
  assert done.returncode == 0, done.stderr
  assert len(_returns(done.stdout)) == 1
  assert "seed 1, 9 steps, return" in done.stdout
  with PIL.open(out) as picture:
    # A Catch episode has nine steps; equal pictures would be merged.
    assert picture.n_frames == 10
    assert picture.size == (600, 500)


@pytest.mark.parametrize(
  ("flags", "line"),
  [
    (["--run=/nowhere"], "/nowhere"),
    (["--seed=7"], "--seed 7: the run has seeds 0 to 1"),
    (["--episodes=0"], "--episodes must be ≥ 1"),
    (["--video=film.mp4"], "--video film.mp4: want NAME.gif"),
    (["--video=/nowhere/film.gif"], "--video /nowhere/film.gif"),
  ],
)
def test_wrong_flags_are_named(run, flags, line):
  where, _ = run
  done = scripts.run("enjoy", *scripts.overridden(f"--run={where}", *flags))
  assert done.returncode == 2
  assert line in done.complaint
