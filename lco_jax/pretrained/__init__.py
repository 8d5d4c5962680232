"""Pretrained language models: import from and export to common file formats."""

from lco_jax.pretrained.export import export
from lco_jax.pretrained.model import PACKAGED, Pretrained, load
from lco_jax.pretrained.model_file import ModelFileError
from lco_jax.pretrained.tokenizer import Tokenizer

__all__ = [
  "PACKAGED",
  "ModelFileError",
  "Pretrained",
  "Tokenizer",
  "export",
  "load",
]
