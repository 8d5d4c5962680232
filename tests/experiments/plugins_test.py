"""Plug-ins as a user gives them to the scripts."""

import csv
import json

import pytest

from tests import scripts

pytestmark = pytest.mark.xdist_group("plugins")

_EXAMPLE = str(scripts.ROOT / "docs" / "examples" / "my_plugin.py")
# A copy of LCO-MSE under another name.
_COPY = """
import lco_jax
from lco_jax import losses

@lco_jax.register_policy_loss("copied", has_target=True)
def make_copied(anchor: str = "old"):
  def policy_loss(logits, batch):
    logits, target = (
      losses.centred_logits(own, batch.legal)
      for own in (logits, batch.target_logits)
    )
    return losses.lco_mse_loss(logits, target, batch.legal), {}
  return policy_loss
"""
_CONTROL = "--config=experiments/configs/control.py:"
_LANGUAGE = "--config=experiments/configs/language.py:"
_SMALL = (
  "--config.num_seeds=2",
  "--config.total_steps=1024",
  "--config.num_envs=4",
  "--config.num_steps=32",
  "--config.eval_episodes=2",
  "--config.hidden_sizes=(8,)",
  "--config.policy_learning_rate=1e-3",
)
_SMALL_LANGUAGE = (
  "--config.num_seeds=1",
  "--config.num_updates=3",
  "--config.warm_start_updates=4",
  "--config.warm_start_prompts=4",
  "--config.learning_rate_warmup=1",
  "--config.num_prompts=4",
  "--config.num_samples=4",
  "--config.num_layers=1",
  "--config.width=8",
  "--config.num_heads=2",
  "--config.num_kv_heads=1",
  "--config.mlp_width=8",
  "--config.eval_problems=4",
  "--config.eval_samples=1",
  "--config.advantage=group_relative",
)


@pytest.fixture
def copy(tmp_path):
  path = tmp_path / "copied_loss.py"
  path.write_text(_COPY)
  return path


def _metrics(workdir):
  return (workdir / "metrics.csv").read_text()


@pytest.mark.parametrize(
  ("script", "config", "small"),
  [
    ("train_control", f"{_CONTROL}two_states", _SMALL),
    ("train_language", f"{_LANGUAGE}copying:2", _SMALL_LANGUAGE),
  ],
)
def test_a_copied_loss_trains_bit_for_bit_as_the_original(
  tmp_path, copy, script, config, small
):
  """On a compiled environment, and on a task, of the plug-in beside it."""
  found = []
  for algorithm in ("lco_mse", "copied"):
    workdir = tmp_path / algorithm
    done = scripts.run(
      script,
      config,
      f"--workdir={workdir}",
      f"--plugins={_EXAMPLE},{copy}",
      f"--config.algorithm={algorithm}",
      *small,
    )
    assert done.returncode == 0, done.stderr
    found.append(_metrics(workdir))
  assert found[0] == found[1] and found[0].count("\n") > 3
  config = json.loads((workdir / "config.json").read_text())
  assert set(config["plugins"]) == {"my_plugin.py", "copied_loss.py"}


def test_comparisons_know_what_is_registered(tmp_path):
  workdir = tmp_path / "comparison"
  flags = (
    f"--workdir={workdir}",
    f"--plugins={_EXAMPLE}",
    "--config.tasks=('guess',)",
    "--config.variants=('ppo','wide: algorithm=lco_huber,delta=2.0')",
    "--config.settings=num_seeds=4,total_steps=256,num_envs=4,num_steps=32,"
    "hidden_sizes=(8,),eval_episodes=1",
    "--config.policy_learning_rates=(1e-3,)",
  )
  unknown = scripts.run("compare", *flags[:1], *flags[2:])
  assert unknown.returncode == 2 and "'guess'" in unknown.complaint
  assert not workdir.exists()
  refused = scripts.run("compare", *flags)
  assert refused.returncode == 1, refused.stderr
  assert "runs on the host" in refused.complaint  # One rate at a time.
  table = scripts.run(
    "compare",
    *scripts.overridden(
      *flags, f"--workdir={workdir}_2", "--config.tasks=('two_states',)"
    ),
  )
  assert table.returncode == 0, table.stderr
  assert "| two_states | wide |" in table.stdout


def test_a_map_of_a_loss_of_ones_own(tmp_path):
  workdir = tmp_path / "map"
  done = scripts.run(
    "stability_map",
    f"--workdir={workdir}",
    f"--plugins={_EXAMPLE}",
    "--config.base=experiments/configs/control.py:two_states",
    "--config.algorithms=('lco_huber',)",
    "--config.values=(1,)",
    "--config.policy_learning_rates=(1e-3,1e-2)",
    "--config.settings=num_seeds=2,total_steps=1024,num_envs=4,num_steps=32,"
    "hidden_sizes=(8,),eval_episodes=1",
  )
  assert done.returncode == 0, done.stderr
  with open(workdir / "map.csv") as file:
    assert len(list(csv.DictReader(file))) == 4
  report = scripts.run("report", f"--out={tmp_path / 'report'}", str(workdir))
  assert report.returncode == 0, report.stderr
  assert "lco_huber" in report.stdout


def test_a_gymnasium_class_runs_on_the_host(tmp_path):
  """And what it learns is what the class pays for: all are right."""
  done = scripts.run(
    "train_control",
    f"{_CONTROL}guess",
    f"--plugins={_EXAMPLE}",
    f"--workdir={tmp_path / 'run'}",
    *scripts.overridden(
      *_SMALL,
      "--config.total_steps=8192",
      "--config.policy_learning_rate=1e-2",
      "--config.algorithm=lco_huber",
      "--config.delta=3.0",
    ),
  )
  assert done.returncode == 0, done.stderr
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert summary["evaluation"]["mean"] == 1.0
  assert summary["evaluation"]["backend"] == "gymnasium"


def test_a_run_goes_on_with_its_own_plugins_alone(tmp_path, copy):
  workdir = tmp_path / "run"
  flags = (f"--workdir={workdir}", "--resume")

  def resume(*more):
    return scripts.run("train_control", *flags, *more)

  done = scripts.run(
    "train_control",
    f"{_CONTROL}probe:action",
    flags[0],
    f"--plugins={copy}",
    "--config.algorithm=copied",
    *_SMALL,
  )
  assert done.returncode == 0, done.stderr
  before = _metrics(workdir)
  again = resume(f"--plugins={copy}")
  assert again.returncode == 0 and _metrics(workdir) == before, again.stderr
  copy.write_text(_COPY + "# Changed.\n")
  for more, line in (
    ((f"--plugins={copy}",), "copied_loss.py has changed since the run"),
    ((), "uses copied_loss.py; give it"),
    ((f"--plugins={copy},{_EXAMPLE}",), "has changed since the run"),
  ):
    refused = resume(*more)
    assert refused.returncode == 2 and line in refused.complaint
  copy.write_text(_COPY)
  extra = resume(f"--plugins={copy},{_EXAMPLE}")
  assert extra.returncode == 2 and "does not use" in extra.complaint
  assert _metrics(workdir) == before


_REGISTERED = """
import lco_jax

@lco_jax.register_policy_loss("{name}")
def make_loss({options}):
  return None
"""


@pytest.mark.parametrize(
  ("text", "line"),
  [
    ("x = 1\ndef f(:\n", "own.py:2: SyntaxError: invalid syntax"),
    ("x = 1\n\nx.y\n", "own.py:3: AttributeError: 'int' object has no"),
    ("import nowhere\n", "own.py:1: ModuleNotFoundError: No module named"),
    (
      _REGISTERED.format(name="ppo", options=""),
      "own.py:4: ValueError: register_policy_loss: the name 'ppo' is taken",
    ),
    (
      _REGISTERED.format(name="sft", options=""),
      "own.py:4: ValueError: register_policy_loss: the name 'sft' is taken",
    ),
    (_REGISTERED.format(name="own", options="tuned=1"), "tuned: two settings"),
    (
      _REGISTERED.format(name="a:b", options=""),
      "own.py:4: ValueError: register_policy_loss: a name has no colon",
    ),
    (
      _REGISTERED.format(name="own", options="slope"),
      "own.py:4: ValueError: make_loss: option 'slope' has no default",
    ),
    (
      _REGISTERED.format(name="own", options="slope=None"),
      "own.py:4: ValueError: make_loss: option 'slope' must be a bool",
    ),
    (
      _REGISTERED.format(name="own", options="clip='a'"),
      "clip: another algorithm has an option of this name and of type float",
    ),
    (_REGISTERED.format(name="own", options="beta=1.0"), "beta: two settings"),
    (
      _REGISTERED.format(name="own", options="activation='tanh'"),
      "activation: two settings",
    ),
    (
      "import lco_jax\n@lco_jax.register_environment('own')\n"
      "def make():\n  return 3\n",
      "environment 'own': want an Environment, a gymnasium.Env or a gymnax",
    ),
  ],
)
def test_what_is_wrong_with_a_plugin_is_one_line(tmp_path, text, line):
  path, workdir = tmp_path / "own.py", tmp_path / "run"
  path.write_text(text)
  done = scripts.run(
    "train_control",
    f"{_CONTROL}own" if "environment" in line else f"{_CONTROL}probe:action",
    f"--workdir={workdir}",
    f"--plugins={path}",
    *_SMALL,
  )
  assert done.returncode == 2
  assert line in done.complaint
  assert not workdir.exists()


def test_a_plugin_that_computes_cannot_join_a_job(tmp_path):
  path, workdir = tmp_path / "own.py", tmp_path / "run"
  path.write_text("import jax\njax.numpy.zeros(3)\n")
  done = scripts.run(
    "train_control",
    f"{_CONTROL}probe:action",
    f"--workdir={workdir}",
    f"--plugins={path}",
    "--distributed",
    f"--coordinator={scripts.free_address()}",
    "--num_processes=1",
    "--process_id=0",
  )
  assert done.returncode
  assert "before the processes were joined" in done.complaint
  assert not workdir.exists()


def test_plugins_that_are_not_there(tmp_path):
  for given, line in (
    (str(tmp_path / "none.py"), "--plugins: no file"),
    ("no_such_module", "--plugins: no module no_such_module"),
  ):
    done = scripts.run("report", "--out=x", f"--plugins={given}", "runs")
    assert done.returncode == 2 and line in done.complaint
