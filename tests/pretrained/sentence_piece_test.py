"""Tokenizers of GGUF files against SentencePiece itself; make test-slow."""

import importlib.util
import pathlib

import numpy as np
import pytest

from lco_jax import pretrained
from lco_jax.pretrained import gguf_tokenizer
from tests.pretrained import scripts_of_the_world

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec("sentencepiece") is None,
    reason="needs pip install sentencepiece",
  ),
]
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_USER_DEFINED = ["<tag>", "\n\n", 2 * _SPACE]
# SentencePiece's kinds as GGUF's numbers.
_NORMAL, _UNKNOWN, _CONTROL, _OWN, _BYTE = 1, 2, 3, 4, 6


def _choose_defined(prefix):
  """With a prefix, llama.cpp puts one behind each, which SentencePiece not."""
  return [] if prefix else _USER_DEFINED


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "none"])
def trained(request, tmp_path_factory):
  """A SentencePiece model with and without a space before every text."""
  import sentencepiece

  folder = tmp_path_factory.mktemp("pieces")
  (folder / "texts").write_text(
    "\n".join(scripts_of_the_world.make_texts(3000, seed=1))
  )
  sentencepiece.SentencePieceTrainer.train(
    input=str(folder / "texts"),
    model_prefix=str(folder / "model"),
    model_type="bpe",
    vocab_size=1500,
    byte_fallback=True,
    character_coverage=0.98,
    user_defined_symbols=_choose_defined(request.param),
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    add_dummy_prefix=request.param,
    allow_whitespace_only_pieces=True,
    split_digits=True,
    minloglevel=2,
  )
  model = sentencepiece.SentencePieceProcessor(str(folder / "model.model"))
  return model, request.param


def _to_metadata(model, prefix):
  """Makes the metadata that llama.cpp's converter writes of a model."""
  numbers = range(model.get_piece_size())
  defined = _choose_defined(prefix)
  pieces = [model.id_to_piece(i) for i in numbers]

  def find_kind(i):
    for kind, holds in (
      (_UNKNOWN, model.is_unknown),
      (_CONTROL, model.is_control),
      (_BYTE, model.is_byte),
    ):
      if holds(i):
        return kind
    return _OWN if pieces[i] in defined else _NORMAL

  return {
    "tokenizer.ggml.model": "llama",
    # The converter writes spaces as such in the tokens that users defined.
    "tokenizer.ggml.tokens": [
      piece.replace(_SPACE, " ") if piece in defined else piece
      for piece in pieces
    ],
    "tokenizer.ggml.scores": np.array(
      [model.get_score(i) for i in numbers], np.float32
    ),
    "tokenizer.ggml.token_type": np.array(
      [find_kind(i) for i in numbers], np.int32
    ),
    "tokenizer.ggml.bos_token_id": model.bos_id(),
    "tokenizer.ggml.eos_token_id": model.eos_id(),
    "tokenizer.ggml.unknown_token_id": model.unk_id(),
    "tokenizer.ggml.add_space_prefix": prefix,
  }


def test_two_thousand_texts_of_many_scripts(trained):
  model, prefix = trained
  own = gguf_tokenizer.read(
    pathlib.Path("a.gguf"), _to_metadata(model, prefix), pretrained.Options()
  )
  texts = scripts_of_the_world.make_texts(2000, seed=2)
  wrong = [
    text
    for text in texts
    if own.encode(text, begins=False) != model.encode(text)
  ]
  assert not wrong, (
    len(wrong),
    wrong[0],
    own.encode(wrong[0], begins=False),
    model.encode(wrong[0]),
  )
  assert own.begin == model.bos_id()
  for text in texts[:200]:
    assert own.decode(model.encode(text)) == text
