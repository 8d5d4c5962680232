"""Compiling for devices without weights: here for those of the tests."""

import dataclasses
import json

import jax
import pytest

from lco_jax import pretrained
from lco_jax.trainers import ahead
from lco_jax.trainers import llm as llm_lib
from lco_jax.trainers import settings as settings_lib
from lco_jax.trainers.configs import control, language, llm, verifier
from lco_jax.training import accelerators, placement

# Flax and optax mix ranks.
pytestmark = pytest.mark.third_party

_CHIP = accelerators.CHIPS["v5e"]
_SIZES = {
  "model_type": "llama",
  "vocab_size": 64,
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_hidden_layers": 5,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
}


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(_SIZES))
  return str(tmp_path)


def _settings(config, **changes):
  config.update(changes)
  return json.loads(json.dumps(settings_lib.resolve(config)))


def _compile(settings, mesh=None, devices=8, gather_weights=None):
  own = jax.devices()[:devices]
  return {
    program.name: ahead.compile_ahead(program, _CHIP, len(own))
    for program in ahead.list_programs(settings, own, mesh, 8, gather_weights)
  }


_SMALL = {"num_prompts": 8, "num_samples": 2, "completion_length": 6}


def test_a_pretrained_model_in_parts(folder):
  settings = _settings(llm.get_config("data"), model=folder, **_SMALL)
  whole = _compile(settings, devices=1)
  parts = _compile(settings, "fsdp:4,tensor:2")
  assert list(whole) == list(parts) == ["generation", "update"]
  for name, own in parts.items():
    assert own["fits"] and not whole[name]["collectives"]
    assert own["argument_bytes"] < whole[name]["argument_bytes"] / 3
    assert own["flops"] == pytest.approx(whole[name]["flops"] / 8, rel=0.02)
    assert sum(kind["count"] for kind in own["collectives"].values()) > 5
  # Forward and backward: a token's products are with every weight but the
  # embedding's, and twice again for the gradient.
  weights = 5 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64) + 32 * 64
  tokens = 8 * 8 + 8 * 2 * 6
  assert whole["update"]["flops"] > 3 * 2 * weights * tokens


def test_weights_are_gathered_once_or_for_each_token(folder):
  settings = _settings(llm.get_config("data"), model=folder, **_SMALL)
  once, each = (
    _compile(settings, "fsdp:8", gather_weights=own)["generation"]
    for own in (True, False)
  )
  weights = 4 * 5 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
  gathered = once["collectives"]["all-gather"]["bytes"]
  assert weights <= gathered < 2 * weights
  # On a CPU XLA moves the gathers out of the loop over tokens itself.
  assert each["collectives"]["all-gather"]["bytes"] > 1.5 * gathered


@pytest.mark.parametrize(
  ("memory", "gathers", "dtype"),
  [
    (None, None, "bfloat16"),
    (1e5, None, "bfloat16"),
    (1e4, None, None),
    (1e4, True, "bfloat16"),
    (None, False, None),
  ],
)
def test_whether_weights_are_gathered_by_default(
  monkeypatch, folder, memory, gathers, dtype
):
  """If they take half of the memory; here 17,408 numbers of 2 bytes."""
  monkeypatch.setattr(accelerators, "find_memory", lambda device: memory)
  config = dataclasses.replace(
    pretrained.read_config(folder), num_layers=1, dtype="bfloat16"
  )
  mesh = placement.make_mesh(
    1, 8, jax.devices(), placement.parse_sizes("fsdp:8")
  )
  assert llm_lib.choose_gather_dtype(config, mesh, gathers) == dtype


@pytest.mark.parametrize(
  "config",
  [
    lambda: _settings(control.get_config("CartPole-v1")),
    lambda: _settings(language.get_config("addition")),
  ],
  ids=["control", "language"],
)
def test_compiled_problems(config):
  (name,) = found = _compile(config())
  assert name == "chunk" and found[name]["fits"] and found[name]["flops"] > 0


def test_a_verifier(folder):
  settings = _settings(verifier.get_config("data"), model=folder, **_SMALL)
  assert list(_compile(settings, "fsdp:4,data:2")) == ["generation", "update"]


def test_what_does_not_fit_says_so(folder):
  settings = _settings(llm.get_config("data"), model=folder, **_SMALL)
  own = jax.devices()
  program = next(ahead.list_programs(settings, own, "fsdp:8", 8))
  found = ahead.compile_ahead(program, _CHIP._replace(memory=1e4), 8)
  assert not found["fits"] and found["peak_bytes"] > 9e3
  assert "rematerialize=True" in ahead.suggest(settings, "update")
  assert "rematerialize=True" not in ahead.suggest(settings, "generation")
  own = _settings(verifier.get_config("data"), model=folder, **_SMALL)
  assert not any("lora" in said for said in ahead.suggest(own, "update"))
  assert ahead.suggest(_settings(control.get_config("CartPole-v1")), "chunk")


@pytest.mark.parametrize(
  ("mesh", "changes", "says"),
  [
    ("fsdp:4", {}, "mesh: .* has 4 devices, but there are 8"),
    ("fsdp:2,tensor:4", {}, "tensor:4 does not divide .* num_kv_heads 2"),
    ("fsdp:8", {"num_prompts": 12}, "data × fsdp, 8, does not divide"),
    ("fsdp:8", {"num_microbatches": 2}, "num_microbatches 2 does not divide"),
    ("fsdp:8", {"base_format": "nf4", "lora_rank": 2}, "base_format"),
  ],
)
def test_what_cannot_be_compiled(folder, mesh, changes, says):
  config = llm.get_config("data")
  settings = _settings(config, model=folder, **(_SMALL | changes))
  with pytest.raises(ValueError, match=says):
    next(ahead.list_programs(settings, jax.devices(), mesh, 8))


def test_a_prompt_has_tokens(folder):
  settings = _settings(llm.get_config("data"), model=folder, **_SMALL)
  with pytest.raises(ValueError, match="--prompt_length"):
    next(ahead.list_programs(settings, jax.devices(), "fsdp:8", 0))


def test_control_has_no_parameters_to_divide():
  settings = _settings(control.get_config("CartPole-v1"))
  with pytest.raises(ValueError, match="need a pretrained model"):
    next(ahead.list_programs(settings, jax.devices(), "fsdp:8", 8))


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:8xx", "v5e:0x8"])
def test_topologies_that_are_none(name):
  with pytest.raises(ValueError, match="--topology"):
    accelerators.describe_topology(name)
