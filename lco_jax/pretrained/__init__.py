"""Pretrained language models: import from and export to common file formats."""

from lco_jax.pretrained.export import export
from lco_jax.pretrained.model import Pretrained, load
from lco_jax.pretrained.model_file import ModelFileError
from lco_jax.pretrained.packaged import PACKAGED
from lco_jax.pretrained.tokenizer import Options, Tokenizer

__all__ = [
  "PACKAGED",
  "ModelFileError",
  "Options",
  "Pretrained",
  "Tokenizer",
  "export",
  "load",
]
