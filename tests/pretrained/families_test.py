"""Families of models: logits, caches, exports, and what is refused."""

import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from lco_jax import networks, pretrained
from lco_jax.pretrained import (
  config_json,
  families,
  gguf_config,
  gguf_file,
  weights,
)
from tests import tiny_model
from tests.pretrained import pretrained_test, tiny_families

# Of transformers in float64.
_GOLDEN = json.loads(
  (
    pathlib.Path(__file__).parent.parent / "data" / "tiny_families.json"
  ).read_text()
)["logits"]


def write_model(folder, texts, values):
  """Writes a model of a configuration, with weights by their names."""
  folder.mkdir()
  for name in ("tokenizer.json", "tokenizer_config.json"):
    (folder / name).write_text((texts / name).read_text())
  (folder / "config.json").write_text(json.dumps(values))
  own = config_json.read(folder / "config.json", values)
  shapes = {
    name: place.shape
    for name, place in weights.list_places(own.transformer).items()
  }
  if families.FAMILIES[values["model_type"]].fused:
    for whole, parts in (
      ("self_attn.qkv_proj", ("q_proj", "k_proj", "v_proj")),
      ("mlp.gate_up_proj", ("gate_proj", "up_proj")),
    ):
      for layer in range(values["num_hidden_layers"]):
        block = f"model.layers.{layer}.{whole.partition('.')[0]}"
        rows = [shapes.pop(f"{block}.{part}.weight") for part in parts]
        shapes[f"model.layers.{layer}.{whole}.weight"] = (
          sum(row[0] for row in rows),
          rows[0][1],
        )
  safetensors_numpy.save_file(
    {k: tiny_families.make_weight(k, shape) for k, shape in shapes.items()},
    folder / "model.safetensors",
  )
  return folder


def _compute_logits(model, tokens):
  network = networks.make_language_model(model.config)

  @jax.jit
  def run(params):
    return network.apply(
      params, jnp.asarray([tokens], jnp.int32), jnp.zeros(1, jnp.int32)
    )[0][0]

  return np.asarray(run(model.params))


@pytest.mark.parametrize("name", tiny_families.CONFIGS)
def test_logits_against_transformers(tmp_path, texts, name):
  """In float32; padding on the left and a cache change nothing."""
  values = tiny_families.CONFIGS[name]
  model = pretrained.load(str(write_model(tmp_path / "model", texts, values)))
  found = _compute_logits(model, tiny_families.TOKENS)
  kept = found[list(tiny_families.POSITIONS), : tiny_families.WIDTH]
  np.testing.assert_allclose(kept, _GOLDEN[name], atol=2e-5)
  np.testing.assert_allclose(
    _read_by_parts(model, tiny_families.TOKENS), found, atol=2e-5
  )
  pretrained.export(model, model.params, tmp_path / "again")
  again = pretrained.load(str(tmp_path / "again"))
  assert again.config == model.config
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
    again.params,
    model.params,
  )


def _read_by_parts(model, tokens, padding=3, first=20):
  """Logits of a reader: some tokens at once, the others one by one."""
  network = networks.make_language_model(model.config)
  own = [0] * padding + list(tokens)
  width = jnp.asarray([padding], jnp.int32)

  @jax.jit
  def run(params):
    read, cache = network.reader(params, 1, len(own))
    hidden, cache = read(
      jnp.asarray([own[: padding + first]], jnp.int32), width, cache, 0
    )

    def step(cache, time):
      token = jnp.asarray(own, jnp.int32)[time][None, None]
      last, cache = read(token, width, cache, time)
      return cache, last[:, 0]

    times = jnp.arange(padding + first, len(own))
    _, others = jax.lax.scan(step, cache, times)
    hidden = jnp.concatenate([hidden[0], others[:, 0]])
    return network.head(params, hidden)

  return np.asarray(run(model.params))[padding:]


@pytest.mark.parametrize(
  ("name", "values", "says"),
  [
    ("llama", {"sliding_window": 64}, "sliding_window 64"),
    ("llama", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
    ("llama", {"clip_qkv": 8.0}, "clip_qkv"),
    ("llama", {"attention_multiplier": 0.1}, "attention_multiplier"),
    ("llama", {"is_causal": False}, "is_causal"),
    ("llama", {"mlp_bias": True}, "mlp_bias"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama", {"rope_scaling": {"type": "su"}}, "rope_type 'su'"),
    (
      "llama",
      {"rope_scaling": {"type": "linear", "rope_type": "yarn"}},
      "rope_type and type differ",
    ),
    ("llama", {"rope_parameters": {"rope_type": "mrope"}}, "'mrope'"),
    ("llama", {"rope_parameters": {"type": "linear"}}, "factor is missing"),
    (
      "llama",
      {"rope_scaling": {"rope_type": "yarn", "factor": True}},
      "factor True",
    ),
    ("llama", {"hidden_act": "relu"}, "hidden_act 'relu'"),
    ("llama", {"head_dim": 7}, "head_dim 7 is odd"),
    ("gemma2", {"use_bidirectional_attention": True}, "bidirectional"),
    ("gemma2", {"num_hidden_layers": 2**30}, "num_hidden_layers"),
    ("gemma3", {"layer_types": ["chunked_attention"] * 4}, "layer_types"),
    ("gemma3", {"layer_types": ["full_attention"]}, "layer_types"),
    ("smollm3", {"no_rope_layers": [1, 2, 0, 1]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layers": None, "num_hidden_layers": 10**9}, "range"),
    ("phi3_longrope", {"rope_scaling": {"type": "longrope"}}, "short_factor"),
    ("olmo2", {"clip_qkv": 1.0}, "clip_qkv"),
    ("qwen2_window", {"max_window_layers": -1}, "max_window_layers"),
    ("llama", {"head_dim": 2**26}, "head_dim"),
    ("llama", {"rope_theta": 10**400}, "rope_theta"),
    (
      "yarn_rope",
      {"rope_scaling": {"type": "yarn", "factor": 1e-40}},
      "factor",
    ),
    ("gemma3", {"attn_logit_softcapping": 2.0}, "attn_logit_softcapping"),
    ("gemma2", {"sliding_window_pattern": 3}, "sliding_window_pattern"),
    (
      "gemma3",
      {"rope_scaling": None, "rope_parameters": {"rope_theta": 1e4}},
      "rope_parameters are not those of",
    ),
    (
      "gemma3",
      {"rope_parameters": {"full_attention": {}}},
      "rope_scaling and rope_parameters",
    ),
    (
      "smollm3",
      {"sliding_window": 8, "layer_types": ["sliding_attention"] * 4},
      "use_sliding_window",
    ),
  ],
)
def test_configurations_that_are_refused(name, values, says):
  own = tiny_families.CONFIGS[name] | values
  with pytest.raises(pretrained.ModelFileError, match=says):
    config_json.read(pathlib.Path("config.json"), own)


def test_entries_that_are_not_known_are_named_once(caplog):
  own = tiny_families.CONFIGS["llama"] | {"zeta": 1, "eta": [2], "theta": None}
  for _ in range(2):
    config_json.read(pathlib.Path("a/config.json"), own)
  said = [record.getMessage() for record in caplog.records]
  assert len(said) == 1 and said[0].endswith("eta, zeta"), said


def test_the_scaling_of_either_spelling():
  """rope_scaling and rope_parameters, rope_type and type; the first counts."""
  path = pathlib.Path("config.json")
  base = {
    k: v for k, v in tiny_families.CONFIGS["llama"].items() if "rope" not in k
  }
  found = [
    config_json.read(path, base | own).transformer
    for own in (
      {"rope_theta": 50.0, "rope_scaling": {"type": "linear", "factor": 2}},
      {
        "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50}
      },
      {
        "rope_theta": 7.0,
        "rope_parameters": {"type": "linear", "factor": 2, "rope_theta": 50},
      },
      {
        "rope_theta": 50.0,
        "rope_scaling": {"type": "linear", "factor": 2},
        "rope_parameters": {"type": "linear", "factor": 9},
      },
    )
  ]
  assert found[0].rope_divisors == (2.0,) * 4
  assert all(own == found[0] for own in found)


def test_entries_as_transformers_takes_them():
  path = pathlib.Path("config.json")

  def read(name, **changes):
    values = tiny_families.CONFIGS[name] | changes
    return config_json.read(path, values).transformer

  assert read("llama", is_decoder=False) == read("llama")
  # Mistral's windows have no switch.
  assert read("mistral", use_sliding_window=False) == read("mistral")
  # Only Gemma's configurations have a hidden_activation.
  own = read("llama", hidden_activation="gelu_pytorch_tanh")
  assert own.activation == "silu"
  longrope = tiny_families.CONFIGS["phi3_longrope"]["rope_scaling"]
  older = longrope | {"rope_type": "yarn"}
  assert read("phi3_longrope", rope_scaling=older) == read("phi3_longrope")
  yarn = tiny_families.CONFIGS["yarn_rope"]["rope_scaling"]
  zeros = yarn | {"mscale": 0.0, "mscale_all_dim": 0}
  assert read("yarn_rope", rope_scaling=zeros) == read("yarn_rope")
  values = dict(tiny_families.CONFIGS["phi3_longrope"])
  del values["original_max_position_embeddings"]
  values["max_position_embeddings"] = 131072
  assert config_json.read(path, values).context_length == 4096


def test_longer_texts_than_a_scaling_was_made_for():
  """Scalings that depend on the text's length limit it."""
  path = pathlib.Path("config.json")
  values = tiny_families.CONFIGS["phi3_longrope"]
  assert config_json.read(path, values).context_length == 64
  same = {"long_factor": values["rope_scaling"]["short_factor"]}
  own = values | {"rope_scaling": values["rope_scaling"] | same}
  assert config_json.read(path, own).context_length == 256


_GGUF_NAMES = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  "lm_head": "output",
  "input_layernorm": "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.qkv_proj": "attn_qkv",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.gate_up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
  "pre_feedforward_layernorm": "ffn_norm",
  "post_feedforward_layernorm": "post_ffw_norm",
}
# Of GGUF: architecture, whether rotary pairs are beside each other, and whether
# files store the scales of the norms themselves.
_GGUF = {
  "llama": ("llama", True, False),
  "llama3_rope": ("llama", True, False),
  "linear_rope": ("llama", True, False),
  "yarn_rope": ("qwen2", False, False),
  "qwen2": ("qwen2", False, False),
  "qwen3": ("qwen3", False, False),
  "phi3": ("phi3", False, False),
  "phi3_longrope": ("phi3", False, False),
  "gemma2": ("gemma2", False, True),
  "gemma3": ("gemma3", False, True),
  "smollm3": ("smollm3", True, False),
  "olmo2": ("olmo2", False, False),
}
# What such files do not tell: llama.cpp has it in its code.
_IN_CODE = {
  "gemma2": {"attention_scale": 12**-0.5},
  "gemma3": {"attention_scale": 12**-0.5, "window_layers": (0, 1, 2, 3)},
  "smollm3": {"unrotated_layers": (3,)},
}


def _to_gguf_name(name, values):
  """blk.I.OWN.weight of model.layers.I.OWN.weight, and the others' names."""
  place, _, kind = name.rpartition(".")
  layer = ""
  if place.startswith("model.layers."):
    _, _, number, place = place.split(".", 3)
    layer = f"blk.{number}."
  if place == "post_attention_layernorm":
    after = values["model_type"] in ("gemma2", "gemma3_text", "olmo2")
    return f"{layer}{'post_attention_norm' if after else 'ffn_norm'}.{kind}"
  return f"{layer}{_GGUF_NAMES[place]}.{kind}"


def _write_gguf(path, folder, name):
  """Writes the model of a folder as llama.cpp's converter does."""
  values = tiny_families.CONFIGS[name]
  architecture, interleaved, whole_norms = _GGUF[name]
  head_dim = values.get("head_dim", 8)
  tensors = {}
  for own, weight in safetensors_numpy.load_file(
    folder / "model.safetensors"
  ).items():
    gguf_name = _to_gguf_name(own, values)
    if whole_norms and gguf_name.endswith("norm.weight"):
      weight = weight + 1
    if interleaved and gguf_name.endswith(("attn_q.weight", "attn_k.weight")):
      halves = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])
      weight = halves.swapaxes(1, 2).reshape(weight.shape)
    tensors[gguf_name] = weight
  sizes = {
    "block_count": values["num_hidden_layers"],
    "context_length": values["max_position_embeddings"],
    "embedding_length": values["hidden_size"],
    "feed_forward_length": values["intermediate_size"],
    "attention.head_count": values["num_attention_heads"],
    "attention.head_count_kv": values["num_key_value_heads"],
    "attention.key_length": head_dim,
    "attention.value_length": head_dim,
    "rope.dimension_count": head_dim,
  }
  epsilon = 1e-5 if architecture in ("phi3", "olmo2") else 1e-6
  theta = 2e6 if architecture == "smollm3" else 1e4
  numbers = {
    "attention.layer_norm_rms_epsilon": values.get("rms_norm_eps", epsilon),
    "rope.freq_base": values.get("rope_theta", theta),
  }
  texts = {}
  if values.get("sliding_window"):
    sizes["attention.sliding_window"] = values["sliding_window"]
  if architecture == "gemma2":
    numbers["attn_logit_softcapping"] = 50.0
    numbers["final_logit_softcapping"] = 30.0
  if architecture == "gemma3":
    numbers["rope.freq_base_swa"] = values["rope_local_base_freq"]
  rope = values.get("rope_scaling", {})
  kind = rope.get("rope_type")
  if kind in ("linear", "yarn"):
    texts["rope.scaling.type"] = kind
    numbers["rope.scaling.factor"] = rope["factor"]
  if kind == "yarn":
    sizes["rope.scaling.original_context_length"] = 16
  if kind == "llama3":
    tensors["rope_freqs.weight"] = np.array(
      _divide_like_llama_3(rope, head_dim), np.float32
    )
  if kind == "longrope":
    sizes["rope.scaling.original_context_length"] = 64
    numbers["rope.scaling.attn_factor"] = math.sqrt(
      1 + math.log(4) / math.log(64)
    )
    for length in ("short", "long"):
      tensors[f"rope_factors_{length}.weight"] = np.array(
        rope[f"{length}_factor"], np.float32
      )
  tiny_model.write_gguf_of(path, architecture, tensors, sizes, numbers, texts)


def _divide_like_llama_3(rope, head_dim):
  """Divisors, one by one."""
  found = []
  trained = rope["original_max_position_embeddings"]
  low, high = (rope[f"{x}_freq_factor"] for x in ("low", "high"))
  for i in range(head_dim // 2):
    wavelength = 2 * math.pi * 1e4 ** (2 * i / head_dim)
    if wavelength < trained / high:
      found.append(1.0)
    elif wavelength > trained / low:
      found.append(rope["factor"])
    else:
      smooth = (trained / wavelength - low) / (high - low)
      found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
  return found


@pytest.mark.parametrize("name", _GGUF)
def test_gguf_files_of_families(tmp_path, texts, name):
  """The same logits as of transformers' files; exports keep them."""
  folder = write_model(tmp_path / "model", texts, tiny_families.CONFIGS[name])
  path = tmp_path / "model.gguf"
  _write_gguf(path, folder, name)
  expected = pretrained.load(str(folder))
  expected = dataclasses.replace(
    expected, config=expected.config_with(**_IN_CODE.get(name, {}))
  )
  found = pretrained.load(str(path))
  np.testing.assert_allclose(
    _compute_logits(found, tiny_families.TOKENS),
    _compute_logits(expected, tiny_families.TOKENS),
    atol=2e-5,
  )
  assert found.context_length == expected.context_length
  pretrained.export(found, found.params, tmp_path / "again")
  assert pretrained.load(str(tmp_path / "again")).config == found.config


def test_what_old_files_of_gemma_2_leave_out(tmp_path, texts):
  """Caps and window are the family's then, as in llama.cpp."""
  values = tiny_families.CONFIGS["gemma2"]
  folder = write_model(tmp_path / "model", texts, values)
  path = tmp_path / "model.gguf"
  _write_gguf(path, folder, "gemma2")
  file = gguf_file.read(path)
  left_out = ("softcapping", "sliding_window")
  own = file._replace(
    metadata={
      key: value
      for key, value in file.metadata.items()
      if not key.endswith(left_out)
    }
  )
  config = config_json.read(path, gguf_config.to_config_json(own)).transformer
  assert (config.attention_cap, config.logit_cap) == (50.0, 30.0)
  assert (config.window, config.window_layers) == (4096, (0, 2))


_ODD = (
  None,
  True,
  False,
  0,
  -1,
  1.5,
  2**40,
  float("inf"),
  float("nan"),
  "x",
  "",
  [],
  [1],
  [None] * 4,
  {},
  {"full_attention": 3},
)


@pytest.mark.parametrize("name", tiny_families.CONFIGS)
def test_odd_entries_of_configurations(name):
  """Each is read or refused, with one line, whatever it is."""
  path = pathlib.Path("config.json")
  values = tiny_families.CONFIGS[name]
  more = {"layer_types", "no_rope_layers", "rope_parameters", "sliding_window"}
  rope = values.get("rope_scaling", {})
  changes = [
    {key: odd} for key in values.keys() | more | {"rope_theta"} for odd in _ODD
  ]
  changes += [
    {"rope_scaling": rope | {key: odd}} for key in rope for odd in _ODD
  ]
  for change in changes:
    try:
      config_json.read(path, values | change)
    except pretrained.ModelFileError as error:
      assert str(error).startswith("config.json: ") and "\n" not in str(error)


@pytest.mark.parametrize("name", ["gemma3", "phi3_longrope", "llama3_rope"])
def test_odd_metadata_of_gguf_files(tmp_path, texts, name):
  """Each is read or refused, with one line, whatever it is."""
  path = tmp_path / "model.gguf"
  folder = write_model(tmp_path / "model", texts, tiny_families.CONFIGS[name])
  _write_gguf(path, folder, name)
  file = gguf_file.read(path)
  prefix = file.metadata["general.architecture"]
  more = gguf_config._READ | gguf_config._NEUTRAL.keys()
  arrays = (np.zeros(2), np.array([1, 2]), np.ones(3, bool))
  for key in file.metadata.keys() | {f"{prefix}.{name}" for name in more}:
    for odd in (*_ODD, *arrays):
      own = file._replace(metadata={**file.metadata, key: odd})
      try:
        values = gguf_config.to_config_json(own)
        config_json.read(path, values)
        gguf_config.convert_tensors(own, values)
      except pretrained.ModelFileError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


@pytest.mark.parametrize("name", ["gemma3", "phi3_longrope"])
def test_malformed_gguf_files_of_families(tmp_path, texts, name):
  """Truncated anywhere or with a flipped header bit: one clear error line."""
  folder = write_model(tmp_path / "model", texts, tiny_families.CONFIGS[name])
  path = tmp_path / "model.gguf"
  _write_gguf(path, folder, name)
  content = (folder / "model.safetensors").stat().st_size
  header = path.stat().st_size - content
  pretrained_test.fuzz(
    path, 4999, 150, header, 8 * 2**30, tmp_path / "bad.gguf", timeout=200
  )
