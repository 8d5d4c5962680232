import pytest

from lco_jax.trainers import settings

_TAKEN = {"ppo": ["clip"], "registered_later": ["delta"]}


def test_options_that_a_stored_run_lacks_are_not_set():
  assert settings.options({"algorithm": "ppo", "clip": None}, _TAKEN) == {}
  found = settings.options({"algorithm": "ppo", "clip": 0.2}, _TAKEN)
  assert found == {"clip": 0.2}
  with pytest.raises(ValueError, match="delta: ppo takes clip"):
    settings.options({"algorithm": "ppo", "delta": 1.0}, _TAKEN)
