import pytest

from lco_jax.trainers import extension

_RUN = {
  "algorithm": "ppo",
  "num_updates": 100,
  "learning_rate_schedule": "linear",
}


def test_settings_before_each_extension():
  twice = extension.extend(extension.extend(_RUN, 150), 400)
  assert twice["num_updates"] == 400 and twice["extended_from"] == [100, 150]
  assert extension.list_earlier(twice) == [_RUN, extension.extend(_RUN, 150)]
  assert extension.find_original(twice) == _RUN
  assert extension.find_original(_RUN) == _RUN
  assert extension.extend(twice, 400) == twice
  with pytest.raises(ValueError, match="400 already"):
    extension.extend(twice, 399)
  with pytest.raises(ValueError, match="extend_to"):
    extension.extend(_RUN, 0)
  control = {"total_steps": 100, "num_envs": 2, "num_steps": 8}
  with pytest.raises(ValueError, match="no update more .* takes 16 steps"):
    extension.extend(control, 111)
  assert extension.extend(control, 112)["total_steps"] == 112


@pytest.mark.parametrize(
  ("settings", "name"),
  [
    ({"algorithm": "ppo", "total_steps": 1}, "total_steps"),
    (_RUN, "num_updates"),
    (
      _RUN | {"algorithm": "sft", "warm_start_updates": 9},
      "warm_start_updates",
    ),
  ],
)
def test_each_kind_of_run_has_a_length(settings, name):
  assert extension.name_length(settings) == name


def test_the_jump_of_the_learning_rate_is_said():
  line = extension.describe_extension(extension.extend(_RUN, 400))
  assert "100 extended to 400" in line and "to 0.75 of" in line
  constant = _RUN | {"learning_rate_schedule": "constant"}
  line = extension.describe_extension(extension.extend(constant, 400))
  assert "stays constant" in line
