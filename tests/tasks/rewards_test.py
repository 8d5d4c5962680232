"""Rewards by name and by file, and what happens when one is at fault."""

import math
import pickle
import subprocess
import sys

import numpy as np
import pytest

from lco_jax.tasks import built_in_rewards, rewards
from lco_jax.trainers import llm_task

_FILE = """
def double(completion, row):
  return 2.0 * row["answer"]

def numpy_value(completion, row):
  import numpy
  return numpy.float32(0.5)

def raises(completion, row):
  return row["nothing"]

def nan(completion, row):
  return float("nan")

def infinite(completion, row):
  return float("inf")

def text(completion, row):
  return "1"

def nothing(completion, row):
  return None

def complex_value(completion, row):
  return 1j

def huge(completion, row):
  return 10**400

def leaves(completion, row):
  raise SystemExit(0)

not_a_function = 3
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "own_rewards.py"
  path.write_text(_FILE)
  return path


def _grade(spec, completion="", **row):
  problem = {"row": row, "place": "rows.jsonl, line 7"}
  return rewards.Grader(rewards.parse(spec)).score(problem, completion)


@pytest.mark.parametrize(
  ("name", "completion", "row", "value"),
  [
    ("exact", " 4\n", {"answer": 4}, 1),
    ("exact", "4.0", {"answer": 4}, 0),
    ("contains", "It is 4.", {"answer": "4"}, 1),
    ("contains", "It is four.", {"answer": "4"}, 0),
    ("numeric", "1 + 1 = 2.", {"answer": "2"}, 1),
    ("numeric", "so 1,234.50", {"answer": "#### 1234.5"}, 1),
    ("numeric", "1e3", {"answer": 1000}, 1),
    ("numeric", "\u22123", {"answer": -3}, 1),
    ("numeric", "0-4", {"answer": -4}, 0),
    ("numeric", "abc2", {"answer": 2}, 0),
    ("numeric", "none", {"answer": 2}, 0),
    ("numeric", "2", {"answer": "none"}, 0),
    ("numeric", "2.001", {"answer": 2}, 0),
    ("regex", "ends with 42", {"pattern": r"\d+$"}, 1),
    ("regex", "42 begins", {"pattern": r"\d+$"}, 0),
    ("choice", "Not A but B.", {"answer": "B"}, 1),
    ("choice", "AB", {"answer": "B"}, 0),
    ("json", '{"a": [1]}', {}, 1),
    ("json", "{'a': 1}", {}, 0),
    ("json", "3", {}, 0),
    ("json", "[" * 100_000, {}, 0),
  ],
)
def test_built_in_rewards(name, completion, row, value):
  assert _grade(name, completion, **row) == [value]


def test_rewards_are_read_with_their_weights(file):
  found = rewards.parse(f"numeric, {file}:double*0.5,exact*0")
  assert [(own.name, own.weight) for own in found] == [
    ("numeric", 1.0),
    ("double", 0.5),
    ("exact", 0.0),
  ]
  assert rewards.parse(",".join(own.text for own in found)) == found
  assert _grade(f"exact,{file}:double,{file}:numpy_value", "3", answer=3) == [
    1.0,
    6.0,
    0.5,
  ]


def test_a_file_is_found_by_another_process(file, tmp_path):
  """Only its path travels; the file is imported there."""
  grader = rewards.Grader(rewards.parse(f"{file}:double"))
  (tmp_path / "grader").write_bytes(pickle.dumps(grader))
  code = (
    "import pickle, sys; g = pickle.load(open(sys.argv[1], 'rb')); g.load();"
    " print(g.score({'row': {'answer': 4}, 'place': ''}, ''))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path / "grader")],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  assert done.stdout.strip() == "[8.0]"


@pytest.mark.parametrize(
  ("name", "line"),
  [
    ("raises", "KeyError: 'nothing'"),
    ("nan", "want a finite number, got nan"),
    ("infinite", "want a finite number, got inf"),
    ("text", "want a finite number, got '1'"),
    ("nothing", "want a finite number, got None"),
    ("complex_value", "want a finite number, got 1j"),
    ("huge", "want a finite number, got "),
    ("leaves", "SystemExit: 0"),
  ],
)
def test_a_reward_at_fault_is_named_with_its_row(file, name, line):
  with pytest.raises(rewards.RewardError) as error:
    _grade(f"exact,{file}:{name}", answer=1)
  begin = f"reward {name}: rows.jsonl, line 7: {line}"
  assert str(error.value).startswith(begin)
  assert pickle.loads(pickle.dumps(error.value)).args == error.value.args


@pytest.mark.parametrize(
  ("spec", "line"),
  [
    ("", "want at least one"),
    ("exakt", r"unknown 'exakt' \(did you mean exact\?\)"),
    ("exact*x", "the weight of exact must be a number"),
    ("exact*inf", "exact has weight inf"),
    ("exact*0", "all weights are 0"),
    ("exact,exact*2", "two are called exact"),
    ("nowhere.py:own", "no file .*nowhere.py"),
    ("own.txt:own", "want FILE.py:FUNCTION"),
    ("FILE:other", "own_rewards.py has no function other"),
    ("FILE:not_a_function", "has no function not_a_function"),
  ],
)
def test_wrong_rewards_are_named(file, spec, line):
  with pytest.raises(ValueError, match=line):
    rewards.parse(spec.replace("FILE", str(file)))


@pytest.mark.parametrize(
  ("text", "line"),
  [("def f(:", "bad.py:1: SyntaxError"), ("\n1 / 0", "bad.py:2: ZeroDivision")],
)
def test_a_file_that_cannot_be_imported_is_named(tmp_path, text, line):
  (tmp_path / "bad.py").write_text(text)
  with pytest.raises(ValueError, match=line):
    rewards.parse(f"{tmp_path / 'bad.py'}:f")


def test_functions_of_a_call():
  found = [
    rewards.make_reward(own) for own in (built_in_rewards.exact, ("json", 2))
  ]
  assert [(own.name, own.weight) for own in found] == [
    ("exact", 1.0),
    ("json", 2.0),
  ]
  assert not found[0].built_in  # A function of the caller's, whatever it is.
  assert rewards.make_reward("exact*0.5").weight == 0.5
  assert rewards.make_reward(("exact*0.5", 3)).weight == 3.0
  with pytest.raises(ValueError, match="want a number as weight, got None"):
    rewards.make_reward(("exact", None))
  for wrong in (lambda completion, row: 1.0, 3):
    with pytest.raises(ValueError, match="at the top of a module"):
      rewards.make_reward(wrong)


def test_groups_are_standardised_each_reward_by_its_own():
  """A reward of large numbers weighs no more than one of small ones."""
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(2, 5, 3, 2)) * [1.0, 100.0]
  scores[:, :, 0, 0] = 7.0  # The same for all samples.
  found = llm_task.standardize_groups(scores)
  for seed, prompt, reward in np.ndindex(2, 3, 2):
    own = scores[seed, :, prompt, reward]
    mean = sum(own) / 5
    deviation = math.sqrt(sum((x - mean) ** 2 for x in own) / 5)
    np.testing.assert_allclose(
      found[seed, :, prompt, reward],
      [(x - mean) / (deviation + 1e-4) for x in own],
      atol=1e-12,
    )
  np.testing.assert_allclose(found[:, :, 1:].std(axis=1), 1.0, atol=1e-2)
  assert (found[:, :, 0, 0] == 0).all()


def test_a_built_in_reward_that_fails_is_nan():
  """A pattern that takes another type of row is the row's fault."""
  assert math.isnan(_grade("numeric", "1")[0])  # No answer in the row.


def test_files_are_listed_and_hashed_without_an_import(tmp_path):
  path = tmp_path / "own.py"
  path.write_text("1 / 0")
  assert rewards.list_files(f"exact,{path}:f*0.5") == [str(path)]
  path.write_text(_FILE)
  found = rewards.parse(f"exact,{path}:double")
  before = rewards.identify(found)
  assert before.keys() == {str(path)}
  path.write_text(_FILE + "\n")
  assert rewards.identify(found) != before
  own = [rewards.make_reward(test_a_built_in_reward_that_fails_is_nan)]
  name = "reward test_a_built_in_reward_that_fails_is_nan"
  assert rewards.identify(own).keys() == {name}


def test_a_registered_reward_is_found_by_another_process(tmp_path):
  """The plug-in is imported before any completion's time begins."""
  (tmp_path / "plug.py").write_text(
    "import lco_jax\n"
    "@lco_jax.register_reward('tripled')\n"
    "def tripled(completion, row):\n"
    "  return 3.0 * row['answer']\n"
  )
  make = (
    "import pickle, sys; sys.path.insert(0, sys.argv[2]); import plug;"
    " from lco_jax.tasks import rewards;"
    " g = rewards.Grader(rewards.parse('tripled*2,exact'));"
    " pickle.dump(g, open(sys.argv[1], 'wb'))"
  )
  use = (
    "import pickle, sys; g = pickle.load(open(sys.argv[1], 'rb')); g.load();"
    " assert 'plug' in sys.modules;"
    " print(g.score({'row': {'answer': 4}, 'place': ''}, '4'))"
  )
  for code in (make, use):
    done = subprocess.run(
      [sys.executable, "-c", code, str(tmp_path / "grader"), str(tmp_path)],
      capture_output=True,
      text=True,
      timeout=120,
      check=True,
    )
  assert done.stdout.strip() == "[12.0, 1.0]"
