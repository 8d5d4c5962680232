"""The wheel outside of this folder: scripts, configs, command and types."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests import compiler, scripts

pytestmark = pytest.mark.xdist_group("packaging")
_SOURCES = ("lco_jax", "experiments", "README.md", "LICENSE", "setup.cfg")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """A folder with what a wheel holds, as if it were installed there."""
  source, target = (tmp_path_factory.mktemp(name) for name in ("from", "to"))
  for name in (*_SOURCES, "pyproject.toml"):
    path = scripts.ROOT / name
    copy = shutil.copytree if path.is_dir() else shutil.copy
    copy(path, source / name)
  build = ["wheel", "--no-deps", "--no-build-isolation", "--quiet"]
  subprocess.run(
    [sys.executable, "-m", "pip", *build, "--wheel-dir", target, source],
    check=True,
    timeout=300,
    capture_output=True,
  )
  (wheel,) = target.glob("*.whl")
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(target / "site")
  return target / "site"


def _run(installed, folder, *words):
  """Runs lco-jax in a folder that has an `experiments` of its own."""
  (folder / "experiments").mkdir(exist_ok=True)
  (folder / "experiments" / "__init__.py").write_text("1 / 0")
  start = "import sys; from experiments.__main__ import main; sys.exit(main())"
  return subprocess.run(
    [sys.executable, "-P", "-c", start, *words],
    cwd=folder,
    env=os.environ
    | {"PYTHONPATH": str(installed), "XLA_FLAGS": compiler.flags(1)},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


def test_the_wheel_is_complete(installed):
  own = {
    path.relative_to(scripts.ROOT)
    for name in ("lco_jax", "experiments")
    for path in (scripts.ROOT / name).rglob("*")
    if path.suffix in (".py", ".html", ".typed")
  }
  there = {
    path.relative_to(installed)
    for path in installed.rglob("*")
    if path.is_file()
  }
  assert own <= there
  (entry,) = installed.glob("*.dist-info/entry_points.txt")
  assert "lco-jax = experiments.__main__:main" in entry.read_text()


def test_the_command_knows_all_scripts(installed, tmp_path):
  done = _run(installed, tmp_path, "--help")
  assert done.returncode == 0, done.stderr
  modules = {path.stem for path in (scripts.ROOT / "experiments").glob("*.py")}
  for module in modules - {"__init__", "__main__"}:
    assert f"  {module.replace('_', '-')} " in done.stdout
  wrong = _run(installed, tmp_path, "trane-control")
  assert wrong.returncode == 2
  assert wrong.stderr.startswith("error: no command 'trane-control'; known:")


def test_runs_and_comparisons_start_outside(installed, tmp_path):
  shutil.copy(scripts.ROOT / "docs" / "examples" / "my_plugin.py", tmp_path)
  settings = ("total_steps=8192", "num_seeds=2", "eval_episodes=2")
  done = _run(
    installed,
    tmp_path,
    "train-control",
    "--plugins=my_plugin.py",
    "--config=experiments/configs/control.py:two_states",
    "--config.algorithm=lco_huber",
    *(f"--config.{setting}" for setting in settings),
    "--workdir=run",
  )
  assert done.returncode == 0, done.stderr
  done = _run(
    installed,
    tmp_path,
    "compare",
    "--plugins=my_plugin",  # As a module of the current folder.
    "--config=experiments/configs/comparison.py:control",
    "--config.tasks=('two_states',)",
    "--config.variants=('lco_huber','ppo')",
    "--config.against=ppo",
    f"--config.settings={','.join(settings)}",
    "--config.policy_learning_rates=(1e-2,)",
    "--workdir=comparison",
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "comparison" / "comparison.csv").exists()
  done = _run(installed, tmp_path, "report", "--out=page", "run")
  assert done.returncode == 0, done.stderr
  pages = {path.name for path in pathlib.Path(tmp_path / "page").iterdir()}
  assert "report.html" in pages
