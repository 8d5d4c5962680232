"""The layers of the library, checked by parsing imports: no cycles, no ups."""

import ast
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parent.parent
_PACKAGE = _ROOT / "lco_jax"

# A unit (module or package of lco_jax) imports only units of earlier lines.
_LAYERS = (
  {"types", "numerics", "checks", "arguments", "user_files"},
  {"targets", "advantages", "losses"},
  {"diagnostics"},
  {"networks", "environments", "tasks"},
  {"pretrained"},
  {"algorithms"},
  {"training", "laboratory"},
  {"control", "language"},
  {"runs"},
  {"reporting"},
  {"trainers"},
)
_LEVEL = {unit: i for i, layer in enumerate(_LAYERS) for unit in layer}
_FILES = sorted(_PACKAGE.rglob("*.py"))


def _unit(path):
  return path.relative_to(_PACKAGE).with_suffix("").parts[0]


def _imported_units(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    for name in names:
      parts = name.split(".")
      assert parts[0] != "experiments", f"{path} imports experiments"
      if _unit(path) != "trainers":
        assert parts[0] != "ml_collections", f"{path} reads configs"
      if parts[0] == "lco_jax" and len(parts) > 1:
        yield parts[1]


def test_every_unit_has_a_layer():
  assert {_unit(path) for path in _FILES} - {"__init__"} == set(_LEVEL)


@pytest.mark.parametrize(
  "path", _FILES, ids=lambda p: str(p.relative_to(_PACKAGE))
)
def test_imports_point_down(path):
  unit = _unit(path)
  if unit == "__init__":
    return
  for imported in _imported_units(path):
    if imported != unit:
      assert _LEVEL[imported] < _LEVEL[unit], f"{unit} imports {imported}"


def test_import_is_light():
  """The core pulls in no plotting, no metric logging, no environments."""
  heavy = ("matplotlib", "tensorboardX", "wandb", "gymnax", "gymnasium", "tqdm")
  code = (
    f"import lco_jax, sys;print([m for m in {heavy!r} if m in sys.modules])"
  )
  output = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    timeout=120,
    check=True,
  )
  assert output.stdout.strip() == "[]"
