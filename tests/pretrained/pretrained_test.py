"""Model files: reading returns what was written and rejects all else."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from lco_jax import networks, pretrained
from lco_jax.pretrained import gguf_tokenizer, packaged
from tests import tiny_model

_TEXT = "hello  World 12345\n<|stop|>héé"


def _logits(model, tokens):
  network = networks.make_language_model(model.config)
  read = jnp.asarray([tokens], jnp.int32)
  return network.apply(model.params, read, jnp.zeros(1, jnp.int32))[0][0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """A GGUF file, its weights, and the model that is read from it."""
  path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
  weights = tiny_model.weights()
  tiny_model.write_gguf(path, weights)
  return path, weights, pretrained.load(str(path))


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_gguf_against_numpy(tmp_path, architecture, tied):
  """Logits of a file's weights, by loops in float64."""
  weights = tiny_model.weights(1, biases=architecture == "qwen2")
  if not tied:
    rng = np.random.default_rng(2)
    shape = weights["token_embd.weight"].shape
    weights["output.weight"] = rng.normal(size=shape).astype(np.float32)
  path = tmp_path / "model.gguf"
  tiny_model.write_gguf(path, weights, architecture)
  model = pretrained.load(str(path))
  assert model.config.tied_embeddings == tied
  assert model.context_length == 128
  tokens = model.tokenizer.encode(_TEXT)
  np.testing.assert_allclose(
    _logits(model, tokens), tiny_model.logits(weights, tokens), atol=2e-5
  )


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "F16", "BF16"])
def test_quantized_weights(tmp_path, name):
  """Quantised blocks decode to the values of the gguf package."""
  kind = gguf.GGMLQuantizationType[name]
  weights = tiny_model.weights()
  path = tmp_path / "model.gguf"
  tiny_model.write_gguf(path, weights, quantized=kind)
  rounded = {
    name: gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
    if weight.ndim == 2
    else weight
    for name, weight in weights.items()
  }
  assert any((rounded[k] != v).any() for k, v in weights.items())
  model = pretrained.load(str(path))
  tokens = model.tokenizer.encode(_TEXT)
  np.testing.assert_allclose(
    _logits(model, tokens), tiny_model.logits(rounded, tokens), atol=5e-5
  )


def test_tokens_of_a_text(tiny):
  """Special tokens in one piece, digits apart, merges by rank, all bytes."""
  tokenizer = tiny[2].tokenizer
  names = [tokenizer.token(token) for token in tokenizer.encode(_TEXT)]
  assert names[:1] == ["hello"]
  at = names.index("1")
  assert names[at : at + 5] == list("12345")
  assert names[names.index("<|stop|>") - 1] == "Ċ"
  assert names[-5:] == ["h", "Ã", "©", "Ã", "©"]
  assert tokenizer.end == (2,)
  text = tokenizer.decode(tokenizer.encode(_TEXT))
  assert text == _TEXT.replace("<|stop|>", "")


def test_chat(tiny):
  tokenizer = tiny[2].tokenizer
  text = tokenizer.chat([{"role": "user", "content": "hi"}])
  assert text == "<|start|>user\nhi<|stop|><|start|>assistant\n"
  assert tokenizer.encode(text)[0] == 1


@pytest.mark.parametrize(
  ("template", "says"),
  [
    ("{{ messages.__class__.__mro__ }}", "unsafe"),
    ("{{ ''.__class__.__subclasses__() }}", "unsafe"),
    ("{% set x = messages.append(1) %}", "unsafe|safely"),
    ("{{ raise_exception('no system') }}", "no system"),
    ("{% if %}", "chat template"),
    ("{{ range(10000000) }}", "chat template"),
    (None, "has no chat template"),
  ],
)
def test_templates_that_are_refused(tiny, template, says):
  tokenizer = dataclasses.replace(tiny[2].tokenizer, template=template)
  with pytest.raises(pretrained.ModelFileError, match=says):
    tokenizer.chat([{"role": "user", "content": "hi"}])


def _same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_an_export_is_read_again(tiny, tmp_path):
  _, _, model = tiny
  folder = tmp_path / "model"
  pretrained.export(model, model.params, folder)
  again = pretrained.load(str(folder))
  assert again.config == model.config
  assert again.context_length == model.context_length
  _same(again.params, model.params)
  assert again.tokenizer.end == model.tokenizer.end
  assert again.tokenizer.begin is None
  assert again.tokenizer.encode(_TEXT) == model.tokenizer.encode(_TEXT)
  messages = [{"role": "user", "content": "hi"}]
  assert again.tokenizer.chat(messages) == model.tokenizer.chat(messages)
  with pytest.raises(FileExistsError):
    pretrained.export(model, model.params, folder)


def test_an_export_that_fails_leaves_nothing(tiny, tmp_path):
  _, _, model = tiny
  with pytest.raises(KeyError):
    pretrained.export(model, {"params": {}}, tmp_path / "model")
  assert not list(tmp_path.iterdir())


def test_what_a_killed_export_left_is_removed(tiny, tmp_path):
  _, _, model = tiny
  for process in (os.getpid(), 1):
    left = tmp_path / f".model.partial-{process}"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
  pretrained.export(model, model.params, tmp_path / "model")
  assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.fixture
def folder(tiny, tmp_path):
  """A folder of safetensors that a test may change."""
  pretrained.export(tiny[2], tiny[2].params, tmp_path / "model")
  return tmp_path / "model"


def _edit(path, **values):
  own = json.loads(path.read_text()) | values
  path.write_text(json.dumps(own))


def test_shards_and_bfloat16(tiny, folder):
  """Two files by an index, one of bfloat16; a copy of the tied embedding."""
  whole = folder / "model.safetensors"
  tensors = safetensors_numpy.load_file(whole)
  whole.unlink()
  names = sorted(tensors)
  halves = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
  for name, own in halves.items():
    shard = {key: tensors[key] for key in own}
    if name.startswith("b"):
      shard = {k: v.astype(ml_dtypes.bfloat16) for k, v in shard.items()}
      shard["lm_head.weight"] = tensors["model.embed_tokens.weight"]
      own.append("lm_head.weight")
    safetensors_numpy.save_file(shard, folder / name)
  places = {key: name for name, own in halves.items() for key in own}
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": places}))
  again = pretrained.load(str(folder))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8),
    again.params,
    tiny[2].params,
  )
  (folder / "b.safetensors").unlink()
  with pytest.raises(pretrained.ModelFileError, match=r"b\.safetensors"):
    pretrained.load(str(folder))
  index.write_text(json.dumps({"weight_map": {"x": "../b.safetensors"}}))
  with pytest.raises(pretrained.ModelFileError, match="weight_map"):
    pretrained.load(str(folder))


@pytest.mark.parametrize(
  ("values", "says"),
  [
    ({"model_type": "gpt2"}, "model_type 'gpt2'"),
    ({"hidden_size": "32"}, "hidden_size '32'"),
    ({"hidden_size": None}, "hidden_size is missing"),
    ({"num_hidden_layers": 10**9}, "tensors for 1000000000 layers"),
    ({"num_hidden_layers": 3}, "layers.2.* is missing"),
    ({"intermediate_size": 65}, r"\[64, 32\], not \[65, 32\]"),
    ({"rope_scaling": {"rope_type": "llama3"}}, "factor is missing"),
    ({"attention_bias": True}, "attention_bias"),
    ({"rms_norm_eps": -1}, "rms_norm_eps"),
    ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
    ({"vocab_size": 100}, "tokenizer of 288 tokens"),
    ({"num_attention_heads": 3}, "num_kv_heads 2 does not divide"),
  ],
)
def test_configurations_that_do_not_fit(folder, values, says):
  _edit(folder / "config.json", **values)
  with pytest.raises(pretrained.ModelFileError, match=says):
    pretrained.load(str(folder))


@pytest.mark.parametrize("change", ["rope_parameters", "rope_theta"])
def test_both_ways_to_say_the_wavelength(folder, change):
  path = folder / "config.json"
  values = json.loads(path.read_text())
  theta = values.pop("rope_theta")
  _edit(path, rope_theta=None)
  if change == "rope_parameters":
    values[change] = {"rope_theta": 2 * theta, "rope_type": "default"}
  else:
    values[change] = 2 * theta
  path.write_text(json.dumps(values))
  assert pretrained.load(str(folder)).config.rope_theta == 2 * theta


@pytest.mark.parametrize(
  "name", ["config.json", "model.safetensors", "tokenizer.json"]
)
def test_damaged_folders(folder, name):
  path = folder / name
  content = path.read_bytes()
  for bad in (b"", content[: len(content) // 2], b"[1]", b"\xff" * 100, None):
    path.unlink() if bad is None else path.write_bytes(bad)
    with pytest.raises(pretrained.ModelFileError) as caught:
      pretrained.load(str(folder))
    assert str(folder) in str(caught.value)


def test_tensors_that_do_not_fit(tmp_path):
  path = tmp_path / "model.gguf"
  for change, says in (
    (lambda w: w.pop("blk.1.attn_v.weight"), "layers.1.*v_proj.* is missing"),
    (lambda w: w.update({"blk.0.extra.weight": np.ones(4, "f")}), "0.extra"),
    (
      lambda w: w.update({"rope_freqs.weight": np.ones(5, "f")}),
      r"rope_freqs.weight is \[5\], not \[4\]",
    ),
    (
      lambda w: w.update({"rope_freqs.weight": np.zeros(4, "f")}),
      "rope_freqs.weight is not positive",
    ),
    (
      lambda w: w.update({"output_norm.weight": np.ones(31, "f")}),
      r"\[31\], not \[32\]",
    ),
    (
      lambda w: w.update({"output_norm.weight": np.full(32, np.nan, "f")}),
      "not finite",
    ),
  ):
    weights = tiny_model.weights()
    change(weights)
    tiny_model.write_gguf(path, weights)
    with pytest.raises(pretrained.ModelFileError, match=says):
      pretrained.load(str(path))
  tiny_model.write_gguf(path, tiny_model.weights(), "gemma")
  with pytest.raises(pretrained.ModelFileError, match="'gemma'"):
    pretrained.load(str(path))


@pytest.mark.parametrize("key", ["rope.scaling.type", "expert_count"])
def test_values_of_a_strange_kind(tmp_path, key):
  """A list in place of a number raises an error that names the key."""
  path = tmp_path / "model.gguf"
  tiny_model.write_gguf(
    path, tiny_model.weights(), lists={f"llama.{key}": [1, 2]}
  )
  with pytest.raises(pretrained.ModelFileError, match=key):
    pretrained.load(str(path))


def test_the_token_before_every_text(tmp_path):
  """It occurs once, because chat templates write it; exports keep it."""
  path = tmp_path / "model.gguf"
  tiny_model.write_gguf(path, tiny_model.weights(), begins=True)
  model = pretrained.load(str(path))
  tokenizer = model.tokenizer
  own = dataclasses.replace(
    tokenizer, template="{{ bos_token }}" + tiny_model.TEMPLATE
  )
  assert own.encode("hello")[:1] == [0]
  text = own.chat([{"role": "user", "content": "hi"}])
  assert own.encode(text, begins=False)[:2] == [0, 1]
  pretrained.export(model, model.params, tmp_path / "model")
  again = pretrained.load(str(tmp_path / "model")).tokenizer
  assert again.begin == 0
  assert again.encode("hello") == own.encode("hello")
  # As others read it: by the rules of tokenizer.json alone.
  assert again.rules.encode("hello").ids == own.encode("hello")


@pytest.mark.parametrize(
  ("split", "expected"), [("gpt-2", [3, 2]), ("llama-bpe", [6, 4])]
)
def test_words_that_no_merge_comes_to(split, expected):
  """Llama 3 keeps such words whole and prepends a token by default."""
  metadata = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": split,
    "tokenizer.ggml.tokens": ["a", "b", "c", "ab", "abc", "<end>", "<begin>"],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 6,
    "tokenizer.ggml.eos_token_id": 5,
  }
  own = gguf_tokenizer.read(
    pathlib.Path("a.gguf"), metadata, pretrained.Options()
  )
  assert own.encode("abc") == expected


def test_a_tied_model_with_another_head(folder):
  path = folder / "model.safetensors"
  own = safetensors_numpy.load_file(path)
  embedding = own["model.embed_tokens.weight"]
  for head in (embedding + 1e-3, embedding[:-1]):
    safetensors_numpy.save_file(own | {"lm_head.weight": head}, path)
    with pytest.raises(pretrained.ModelFileError, match=r"lm_head\.weight"):
      pretrained.load(str(folder))


def test_a_whole_file_counts_before_an_index(tiny, folder):
  """As in transformers."""
  own = safetensors_numpy.load_file(folder / "model.safetensors")
  safetensors_numpy.save_file(
    {k: v / 2 for k, v in own.items()}, folder / "half.safetensors"
  )
  (folder / "model.safetensors.index.json").write_text(
    json.dumps({"weight_map": dict.fromkeys(own, "half.safetensors")})
  )
  _same(pretrained.load(str(folder)).params, tiny[2].params)


@pytest.mark.parametrize(
  ("name", "kind", "value"),
  [
    ("attention.sliding_window", "uint32", 64),
    ("attn_logit_softcapping", "float32", 30.0),
    ("final_logit_softcapping", "float32", 30.0),
    ("attention.clamp_kqv", "float32", 8.0),
    ("attention.scale", "float32", 0.1),
    ("attention.causal", "bool", False),
    ("logit_scale", "float32", 0.5),
    ("embedding_scale", "float32", 2.0),
    ("expert_count", "uint32", 8),
    ("rope.scaling.attn_factor", "float32", 2.0),
    ("rope.freq_base_swa", "float32", 100.0),
    ("pooling_type", "uint32", 1),
  ],
)
def test_metadata_that_are_refused(tmp_path, monkeypatch, name, kind, value):
  """The error names an entry that changes the result or is not known."""
  path = tmp_path / "model.gguf"
  _with_metadata(monkeypatch, [(kind, f"llama.{name}", value)])
  tiny_model.write_gguf(path, tiny_model.weights())
  says = name.replace("attention.sliding", "sliding")
  with pytest.raises(pretrained.ModelFileError, match=says):
    pretrained.load(str(path))


def _with_metadata(monkeypatch, more=(), without=()):
  """Has files written with more metadata, and without some."""

  class Writer(gguf.GGUFWriter):
    def write_header_to_file(self, *args, **kwargs):
      for key in without:
        self.kv_data[0].pop(key)
      for kind, key, value in more:
        getattr(self, f"add_{kind}")(key, value)
      return super().write_header_to_file(*args, **kwargs)

  monkeypatch.setattr(tiny_model.gguf, "GGUFWriter", Writer)


@pytest.mark.parametrize(
  ("more", "divisors"),
  [
    (
      [
        ("string", "llama.rope.scaling.type", "linear"),
        ("float32", "llama.rope.scaling.factor", 4.0),
      ],
      (4.0,) * 4,
    ),
    ([("float32", "llama.rope.scale_linear", 4.0)], (4.0,) * 4),
    (
      [
        ("string", "llama.rope.scaling.type", "yarn"),
        ("float32", "llama.rope.scaling.factor", 4.0),
        ("uint32", "llama.rope.scaling.original_context_length", 32),
      ],
      None,
    ),
    ([("string", "llama.rope.scaling.type", "none")], None),
  ],
)
def test_rotary_scaling_of_gguf_files(tmp_path, monkeypatch, more, divisors):
  path = tmp_path / "model.gguf"
  _with_metadata(monkeypatch, more)
  tiny_model.write_gguf(path, tiny_model.weights())
  config = pretrained.load(str(path)).config
  if divisors is None and "yarn" in str(more):
    assert config.rope_divisors[0] == 1 and config.rope_divisors[-1] == 4
    np.testing.assert_allclose(config.rope_amplitude, 1 + 0.1 * np.log(4))
  else:
    assert config.rope_divisors == divisors and config.rope_amplitude == 1


def test_divisors_of_llama_3(tmp_path):
  """rope_freqs.weight divides the frequencies; exports keep it."""
  weights = tiny_model.weights()
  weights["rope_freqs.weight"] = np.array([1, 2, 4, 8], np.float32)
  path = tmp_path / "model.gguf"
  tiny_model.write_gguf(path, weights)
  model = pretrained.load(str(path))
  assert model.config.rope_divisors == (1, 2, 4, 8)
  pretrained.export(model, model.params, tmp_path / "model")
  again = pretrained.load(str(tmp_path / "model"))
  assert again.config == model.config
  assert again.context_length == model.context_length == 128


@pytest.mark.parametrize("said", [None, "default", "other"])
def test_how_text_is_split_is_not_guessed(tmp_path, monkeypatch, said):
  key = "tokenizer.ggml.pre"
  more = [] if said is None else [("string", key, said)]
  path = tmp_path / "model.gguf"
  _with_metadata(monkeypatch, more, [key])
  tiny_model.write_gguf(path, tiny_model.weights())
  with pytest.raises(pretrained.ModelFileError, match=key):
    pretrained.load(str(path))
  tokens = {
    name: pretrained.load(
      str(path), pretrained.Options(pre_tokenizer=name)
    ).tokenizer.encode("a  1")
    for name in ("smollm", "qwen2")
  }
  assert len(tokens["smollm"]) == 3 and len(tokens["qwen2"]) == 4
  with pytest.raises(pretrained.ModelFileError, match="pre_tokenizer 'x'"):
    pretrained.load(str(path), pretrained.Options(pre_tokenizer="x"))


def test_there_is_no_such_model(tmp_path):
  with pytest.raises(pretrained.ModelFileError, match="no such model"):
    pretrained.load(str(tmp_path / "none"))


def test_models_of_the_hub_that_were_downloaded(tiny, tmp_path, monkeypatch):
  monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
  with pytest.raises(pretrained.ModelFileError, match="hf download own/tiny"):
    pretrained.load("own/tiny")
  model = tmp_path / "models--own--tiny"
  (model / "refs").mkdir(parents=True)
  (model / "refs" / "main").write_text("abc")
  pretrained.export(tiny[2], tiny[2].params, model / "snapshots" / "abc")
  _same(pretrained.load("own/tiny").params, tiny[2].params)


def test_a_file_in_parts(tiny, tmp_path, monkeypatch):
  """Packages may hold a file's parts; they are found without an import."""
  content = tiny[0].read_bytes()
  for name, part in (("one", content[:5000]), ("two", content[5000:])):
    folder = tmp_path / f"tiny_part_{name}"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError")
    (folder / f"tiny.gguf.{name}").write_bytes(part)
  monkeypatch.syspath_prepend(str(tmp_path))
  package = packaged.Package(("tiny_part_one", "tiny_part_two"), "tiny")
  monkeypatch.setitem(packaged.PACKAGED, "tiny", package)
  _same(pretrained.load("tiny").params, tiny[2].params)
  missing = packaged.Package(("tiny_part_three",), "tiny-parts")
  monkeypatch.setitem(packaged.PACKAGED, "tiny", missing)
  with pytest.raises(pretrained.ModelFileError, match="pip install tiny-parts"):
    pretrained.load("tiny")


_FUZZ = """
import os, pathlib, random, resource, shutil, sys, time
from lco_jax import pretrained
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
step, flips, header = map(int, sys.argv[3:6])
path = pathlib.Path(sys.argv[6])
shutil.copyfile(sys.argv[1], path)
rng = random.Random(0)
shapes = None
counts = {"read": 0, "refused": 0}
slowest = 0.0
def attempt():
  global slowest
  began = time.monotonic()
  try:
    model = pretrained.load(str(path))
    embedding = model.params["params"]["embed"]["embedding"]
    assert model.config.vocab_size == len(embedding)
    counts["read"] += 1
  except pretrained.ModelFileError as error:
    assert str(error).startswith(str(path)), error
    counts["refused"] += 1
  slowest = max(slowest, time.monotonic() - began)
for size in reversed(range(0, path.stat().st_size, step)):
  os.truncate(path, size)
  attempt()
assert counts["read"] == 0, counts
truncated = counts["refused"]
shutil.copyfile(sys.argv[1], path)
with path.open("r+b", buffering=0) as file:
  for _ in range(flips):
    place, bit = rng.randrange(header), 1 << rng.randrange(8)
    def turn():
      file.seek(place)
      (byte,) = file.read(1)
      file.seek(place)
      file.write(bytes([byte ^ bit]))
    turn()
    attempt()
    turn()
assert counts["read"] + counts["refused"] == truncated + flips
print(truncated, counts, round(slowest, 2))
assert slowest < 60
"""


def fuzz(path, step, flips, header, memory, scratch, timeout):
  """Loads files that are truncated or have flipped bits.

  Args:
    path: of a GGUF file.
    step: bytes from one length to the next.
    flips: files of which one bit of the header is turned.
    header: bytes of it.
    memory: that the process may take, in bytes.
    scratch: file to write.
    timeout: seconds.
  """
  arguments = map(str, (path, memory, step, flips, header, scratch))
  done = subprocess.run(
    [sys.executable, "-c", _FUZZ, *arguments],
    capture_output=True,
    text=True,
    timeout=timeout,
    cwd=pathlib.Path(__file__).parent.parent.parent,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


def test_malformed_files(tiny, tmp_path):
  """Truncated anywhere or with a flipped header bit: one clear error line."""
  path, _, _ = tiny
  size = path.stat().st_size
  header = size - 4 * sum(weight.size for weight in tiny[1].values())
  fuzz(path, 997, 300, header, 8 * 2**30, tmp_path / "bad.gguf", timeout=200)
