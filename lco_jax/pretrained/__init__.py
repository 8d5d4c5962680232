"""Pretrained language models: import from and export to common file formats."""

from lco_jax.pretrained.export import export
from lco_jax.pretrained.model import (
  Pretrained,
  load,
  open_model,
  read_config,
)
from lco_jax.pretrained.model_file import ModelFileError
from lco_jax.pretrained.packaged import PACKAGED
from lco_jax.pretrained.shapes import SHAPES
from lco_jax.pretrained.stored_array import StoredArray, check_finite
from lco_jax.pretrained.tokenizer import Options, Tokenizer

__all__ = [
  "PACKAGED",
  "SHAPES",
  "ModelFileError",
  "Options",
  "Pretrained",
  "StoredArray",
  "Tokenizer",
  "check_finite",
  "export",
  "load",
  "open_model",
  "read_config",
]
