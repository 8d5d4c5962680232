import pytest

from lco_jax.reporting import conditions

_CONTROL = {
  "environment": "Catch-bsuite",
  "total_steps": 1000,
  "num_envs": 4,
  "num_steps": 16,
  "eval_episodes": 10,
}
_LANGUAGE = {
  "task": "parity",
  "algorithm": "ppo",
  "num_updates": 10,
  "num_prompts": 4,
  "num_samples": 2,
  "init_from": None,
  "warm_start_updates": 5,
  "warm_start_prompts": 8,
  "warm_start_learning_rate": 1e-3,
}


def _differ(one, other, done=None):
  both = [conditions.find_conditions(own, done) for own in (one, other)]
  return conditions.find_differences(both)


@pytest.mark.parametrize(
  ("run", "changes", "names"),
  [
    (_CONTROL, {"total_steps": 2000}, ["length"]),
    (_CONTROL, {"beta": 0.3}, []),
    (_CONTROL, {"num_envs": 3}, []),
    (_CONTROL, {"eval_episodes": 20}, ["eval_episodes"]),
    (_CONTROL, {"extended_from": [500]}, ["extended_from"]),
    (_LANGUAGE, {"num_prompts": 8, "num_samples": 1}, []),
    (_LANGUAGE, {"num_samples": 4}, ["length"]),
    (_LANGUAGE, {"warm_start_updates": 6}, ["warm_start_updates"]),
  ],
)
def test_what_must_be_the_same(run, changes, names):
  assert _differ(run, run | changes) == names


def test_training_scores_do_not_depend_on_the_evaluation():
  assert _differ(_CONTROL, _CONTROL | {"eval_episodes": 20}, 1000) == []


def test_a_given_start_replaces_the_warm_start():
  given = _LANGUAGE | {"init_from": "runs/a"}
  assert "init_from" in _differ(_LANGUAGE, given)
  assert _differ(given, given | {"warm_start_updates": 6}) == []


def test_files_are_known_by_their_hashes():
  one = _LANGUAGE | {"data": "a.jsonl", "files": {"a.jsonl": "12ab"}}
  other = _LANGUAGE | {"data": "./a.jsonl", "files": {"./a.jsonl": "12ab"}}
  assert _differ(one, other) == []
  changed = other | {"files": {"./a.jsonl": "34cd"}}
  assert _differ(one, changed) == ["files", "data"]
  own = {"rewards": "r.py:near*0.1,exact"}
  there = {"rewards": "/there/r.py:near*0.1,exact"}
  assert _differ(one | own, other | there) == []
  for rewards in ("r.py:near*0.2,exact", "r.py:near*0.1,numeric"):
    assert _differ(one | own, one | {"rewards": rewards}) == ["rewards"]


def test_a_whole_run_is_as_long_as_planned():
  """Its last update ends below: 15 of 64 steps are 960 of 1000."""
  assert conditions.find_conditions(_CONTROL, 960)["length"] == 1000
  assert conditions.find_conditions(_CONTROL, 896)["length"] == 896
  assert conditions.find_conditions(_LANGUAGE, 80)["length"] == 80
  assert conditions.find_conditions(_LANGUAGE, 72)["length"] == 72
  supervised = _LANGUAGE | {"algorithm": "sft"}
  assert conditions.plan_length(supervised) == 40
