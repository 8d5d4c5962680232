"""Building runs of pretrained models: what users are told of their model."""

import dataclasses

import pytest

from lco_jax import pretrained
from lco_jax.trainers import llm
from tests import tiny_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
  tiny_model.write_gguf(path, tiny_model.weights())
  return pretrained.load(str(path)).tokenizer


@pytest.mark.parametrize(("end", "says"), [((2,), False), ((0, 1), True)])
def test_answers_that_never_end(tokenizer, caplog, end, says):
  """The template ends answers with token 2, whatever the files name."""
  llm._warn_of_endless_answers(dataclasses.replace(tokenizer, end=end))
  said = [record.getMessage() for record in caplog.records]
  assert len(said) == says
  if says:
    assert "<|stop|>" in said[0] and "set end_tokens" in said[0]
