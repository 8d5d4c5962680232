"""Fixtures of tests of pretrained models."""

import pytest

from lco_jax import pretrained
from tests import tiny_model


@pytest.fixture(scope="package")
def texts(tmp_path_factory):
  """A folder with the files of a tokenizer."""
  place = tmp_path_factory.mktemp("texts")
  tiny_model.write_gguf(place / "tiny.gguf", tiny_model.weights())
  model = pretrained.load(str(place / "tiny.gguf"))
  pretrained.export(model, model.params, place / "model")
  return place / "model"
