"""Special tokens, ends and beginnings of texts, and exports that keep them."""

import json
import pathlib

import numpy as np
import pytest

from lco_jax import pretrained
from lco_jax.pretrained import gguf_tokenizer
from tests import tiny_model

_USER = [{"role": "user", "content": "hi"}]
_PLAIN = "<|start|>user\nhi<|stop|><|start|>assistant\n"
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


@pytest.fixture
def folder(tmp_path):
  """A folder of a model that a test may change."""
  tiny_model.write_gguf(tmp_path / "tiny.gguf", tiny_model.weights())
  model = pretrained.load(str(tmp_path / "tiny.gguf"))
  pretrained.export(model, model.params, tmp_path / "model")
  return tmp_path / "model"


def _edit(path, without=(), **values):
  own = json.loads(path.read_text()) if path.exists() else {}
  own = {k: v for k, v in own.items() if k not in without} | values
  path.write_text(json.dumps(own))


def _load(folder, **options):
  return pretrained.load(str(folder), pretrained.Options(**options))


def test_special_tokens_by_name(folder):
  """Templates know them whether or not the tokenizer adds them."""
  _edit(
    folder / "tokenizer_config.json",
    bos_token="<|end|>",
    unk_token={"content": "<|start|>", "special": True},
    mask_token=None,
    chat_template="{{ bos_token }}{{ unk_token }}{{ mask_token }}"
    + tiny_model.TEMPLATE,
  )
  own = _load(folder).tokenizer
  assert own.begin is None
  assert own.chat(_USER) == "<|end|><|start|>" + _PLAIN
  _edit(folder / "tokenizer_config.json", unk_token=3)
  with pytest.raises(pretrained.ModelFileError, match="unk_token 3 is no text"):
    _load(folder)


def test_an_older_file_of_special_tokens(folder):
  """It counts, as in transformers, unless the configuration lists tokens."""
  template = "{{ bos_token }}{{ cls_token }}"
  config = folder / "tokenizer_config.json"
  _edit(config, bos_token="<|end|>", chat_template=template)
  _edit(
    folder / "special_tokens_map.json",
    bos_token="<|stop|>",
    cls_token={"content": "<|start|>"},
  )
  assert _load(folder).tokenizer.chat(_USER) == "<|stop|><|start|>"
  _edit(config, added_tokens_decoder={})
  assert _load(folder).tokenizer.chat(_USER) == "<|end|>"


@pytest.mark.parametrize("value", [None, True, False])
def test_who_puts_the_first_token(folder, value):
  """tokenizer.json alone, as in transformers, whatever the other file says."""
  path = folder / "tokenizer.json"
  rules = json.loads(path.read_text())
  rules["post_processor"] = {
    "type": "TemplateProcessing",
    "single": [
      {"SpecialToken": {"id": "<|end|>", "type_id": 0}},
      {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {
      "<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]}
    },
  }
  path.write_text(json.dumps(rules))
  config = folder / "tokenizer_config.json"
  _edit(config, bos_token="<|end|>", add_bos_token=value)
  own = _load(folder).tokenizer
  assert own.begin == 0
  rules.pop("post_processor")
  path.write_text(json.dumps(rules))
  assert _load(folder).tokenizer.begin is None


def test_prompts_are_neither_cut_nor_filled_up(folder):
  """Files keep how texts were cut and filled up in training."""
  text = "hello hello 12"
  expected = _load(folder).tokenizer.encode(text)
  path = folder / "tokenizer.json"
  rules = json.loads(path.read_text())
  rules["truncation"] = {
    "direction": "Right",
    "max_length": 2,
    "strategy": "LongestFirst",
    "stride": 0,
  }
  rules["padding"] = {
    "strategy": {"Fixed": 30},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<|end|>",
  }
  path.write_text(json.dumps(rules))
  assert _load(folder).tokenizer.encode(text) == expected


def test_tokens_that_only_one_file_has(folder):
  config = folder / "tokenizer_config.json"
  _edit(config, added_tokens_decoder={"2": {"content": "<|stop|>"}})
  assert _load(folder).tokenizer.end == (2,)
  for number, text in (("288", "<new>"), ("1", "<|stop|>"), ("2", None)):
    _edit(config, added_tokens_decoder={number: {"content": text}})
    with pytest.raises(pretrained.ModelFileError, match="added_tokens_decoder"):
      _load(folder)


def test_numbers_of_tokens_may_have_gaps(folder):
  path = folder / "tokenizer.json"
  rules = json.loads(path.read_text())
  rules["model"]["vocab"]["far"] = 400
  path.write_text(json.dumps(rules))
  with pytest.raises(pretrained.ModelFileError, match="of 401 tokens"):
    _load(folder)


def test_a_file_for_the_template_counts_first(folder):
  (folder / "chat_template.jinja").write_text("NEW" + tiny_model.TEMPLATE)
  assert _load(folder).tokenizer.chat(_USER) == "NEW" + _PLAIN


def test_all_tokens_that_end_a_text(folder):
  """Each file may name some, and so may the setting; each counts once."""
  _edit(folder / "config.json", eos_token_id=[1, 5])
  _edit(folder / "generation_config.json", eos_token_id=6)
  assert _load(folder).tokenizer.end == (2, 6, 1, 5)
  own = _load(folder, end_tokens=("<|end|>", "hello")).tokenizer
  assert own.end == (2, 6, 1, 5, 0, own.rules.token_to_id("hello"))
  with pytest.raises(pretrained.ModelFileError, match="end_tokens: '<|no|>'"):
    _load(folder, end_tokens=("<|no|>",))
  for wrong in (True, "2", 10**6, -1, [[2]]):
    _edit(folder / "config.json", eos_token_id=wrong)
    with pytest.raises(pretrained.ModelFileError, match="is no token"):
      _load(folder)


def test_no_token_that_ends_a_text(folder):
  _edit(folder / "tokenizer_config.json", without=["eos_token"])
  for name in ("config.json", "generation_config.json"):
    _edit(folder / name, without=["eos_token_id"])
  with pytest.raises(pretrained.ModelFileError, match="set end_tokens"):
    _load(folder)
  assert _load(folder, end_tokens=("<|stop|>",)).tokenizer.end == (2,)


def test_how_the_template_ends_an_answer(folder):
  own = _load(folder).tokenizer
  assert own.find_turn_end() == 2
  for template, expected in (
    ("{% for m in messages %}{{ m.content }}{% endfor %}", None),
    ("{% for m in messages %}{{ m.content }}\n<|end|>{% endfor %}", 0),
    ("{{ raise_exception('no') }}", None),
    (None, None),
  ):
    _edit(folder / "tokenizer_config.json", chat_template=template)
    assert _load(folder).tokenizer.find_turn_end() == expected, template


def test_exports_keep_what_was_read(folder, tmp_path):
  """And an export of an export is the same, file by file."""
  _edit(
    folder / "tokenizer_config.json",
    bos_token="<|end|>",
    pad_token="<|start|>",
    unk_token="<|start|>",
  )
  _edit(folder / "generation_config.json", temperature=0.6, top_p=0.9)
  _edit(folder / "config.json", initializer_range=0.5, eos_token_id=[2, 1])
  first = _load(folder)
  assert first.tokenizer.padding == 1
  pretrained.export(first, first.params, tmp_path / "one")
  second = _load(tmp_path / "one")
  pretrained.export(second, second.params, tmp_path / "two")
  names = sorted(path.name for path in (tmp_path / "one").iterdir())
  assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
  for name in names:
    one, two = ((tmp_path / x / name).read_bytes() for x in ("one", "two"))
    assert one == two, name
  assert second.tokenizer.special == first.tokenizer.special
  assert second.tokenizer.end == first.tokenizer.end == (2, 1)
  read = {
    name: json.loads((tmp_path / "one" / name).read_text())
    for name in ("config.json", "generation_config.json")
  }
  assert read["config.json"]["initializer_range"] == 0.5
  assert read["config.json"]["pad_token_id"] == 1
  assert read["generation_config.json"] == {
    "eos_token_id": [2, 1],
    "bos_token_id": 0,
    "pad_token_id": 1,
    "temperature": 0.6,
    "top_p": 0.9,
  }


def _metadata(**changes):
  """Metadata of SentencePiece's kind, with a few pieces."""
  pieces = {  # Kind and score.
    "<unk>": (2, 0),
    "<s>": (3, 0),
    "</s>": (3, 0),
    "<eot>": (3, 0),
    "  ": (4, 0),
    **{f"<0x{byte:02X}>": (6, 0) for byte in range(256)},
    _SPACE: (1, -9),
    "a": (1, -8),
    "b": (1, -8),
    "ab": (1, -2),
    "ba": (1, -1),
    f"{_SPACE}a": (1, -3),
    "aba": (1, -4),
  }
  return {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": list(pieces),
    "tokenizer.ggml.scores": np.array(
      [score for _, score in pieces.values()], np.float32
    ),
    "tokenizer.ggml.token_type": np.array(
      [kind for kind, _ in pieces.values()], np.int32
    ),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.eot_token_id": 3,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.add_space_prefix": False,
  } | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}


def _read(metadata):
  return gguf_tokenizer.read(
    pathlib.Path("a.gguf"), metadata, pretrained.Options()
  )


@pytest.mark.parametrize(
  ("text", "prefix", "expected"),
  [
    # The best pair first: ba before ab.
    ("bab", False, ["ba", "b"]),
    ("abab", False, ["aba", "b"]),
    (" a", False, [f"{_SPACE}a"]),
    ("a", True, [f"{_SPACE}a"]),
    ("a  a", False, ["a", "  ", "a"]),
    ("aé", False, ["a", "<0xC3>", "<0xA9>"]),
    ("a<eot>b", False, ["a", "<eot>", "b"]),
  ],
)
def test_sentence_pieces(text, prefix, expected):
  own = _read(_metadata(add_space_prefix=prefix))
  tokens = own.encode(text)
  assert [own.token(token) for token in tokens] == ["<s>", *expected]
  assert own.end == (2, 3)
  assert own.special["unk_token"] == "<unk>"
  assert own.decode(tokens) == text.replace("<eot>", "")


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"model": "bert"}, "'bert' is not supported"),
    ({"scores": np.zeros(3, np.float32)}, "3 tokenizer.ggml.scores"),
    ({"token_type": np.zeros(3, np.int32)}, "3 tokenizer.ggml.token_type"),
    ({"eos_token_id": 9999}, "eos_token_id 9999 is no token"),
    ({"padding_token_id": -1}, "padding_token_id -1 is no token"),
    ({"eos_token_id": "2"}, "eos_token_id is missing or has a wrong type"),
    ({"add_space_prefix": 1}, "add_space_prefix"),
    ({"tokens": ["a", "a"]}, "a token twice"),
  ],
)
def test_wrong_sentence_pieces(changes, says):
  with pytest.raises(pretrained.ModelFileError, match=says):
    _read(_metadata(**changes))


def test_odd_metadata_of_tokenizers():
  """Each is read or refused, with one line, whatever it is."""
  base = _metadata()
  odd = (
    None,
    True,
    0,
    -1,
    2**40,
    1.5,
    "x",
    [],
    [1],
    np.zeros(2),
    np.ones(2, bool),
  )
  names = (*base, "tokenizer.ggml.add_bos_token", "tokenizer.chat_template")
  for name in names:
    for value in odd:
      try:
        _read(base | {name: value})
      except pretrained.ModelFileError as error:
        assert str(error).startswith("a.gguf: ") and "\n" not in str(error)
