"""A random model of Llama's or Qwen2's shape: files, and what it computes."""

import pathlib

import gguf
import numpy as np
from tokenizers import pre_tokenizers

CONTROL, NORMAL = 3, 1
WIDTH, HEADS, KV_HEADS, LAYERS, MLP = 32, 4, 2, 2, 64
FEATURES = WIDTH // HEADS
THETA, EPSILON = 1e4, 1e-5
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ Ġ")
SPECIAL = ("<|end|>", "<|start|>", "<|stop|>")
TEMPLATE = (
  "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n'"
  " + message['content'] + '<|stop|>' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def tokens() -> list[str]:
  """Special tokens, bytes, and what merges make of them."""
  characters = sorted(pre_tokenizers.ByteLevel.alphabet())
  merged = [merge.replace(" ", "") for merge in MERGES]
  own = [*SPECIAL, *characters, *merged]
  return own + [f"<unused{i}>" for i in range(-len(own) % 32)]


VOCABULARY = len(tokens())


def weights(seed: int = 0, biases: bool = False) -> dict[str, np.ndarray]:
  """Random weights by the names that GGUF gives them, in halves for rotary."""
  rng = np.random.default_rng(seed)
  shapes = {"token_embd.weight": (VOCABULARY, WIDTH)}
  for layer in range(LAYERS):
    shapes |= {
      f"blk.{layer}.{name}.weight": shape
      for name, shape in {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (KV_HEADS * FEATURES, WIDTH),
        "attn_v": (KV_HEADS * FEATURES, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (MLP, WIDTH),
        "ffn_up": (MLP, WIDTH),
        "ffn_down": (WIDTH, MLP),
      }.items()
    }
    if biases:
      for name, size in (("q", WIDTH), ("k", 16), ("v", 16)):
        shapes[f"blk.{layer}.attn_{name}.bias"] = (size,)
  found = {
    name: rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
    for name, shape in shapes.items()
  }
  norms = ["output_norm.weight"] + [
    f"blk.{layer}.{name}.weight"
    for layer in range(LAYERS)
    for name in ("attn_norm", "ffn_norm")
  ]
  for name in norms:
    found[name] = rng.uniform(0.5, 1.5, WIDTH).astype(np.float32)
  return found


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
  """Rows as llama.cpp stores queries and keys: pairs beside each other."""
  rows = [
    weight[head * FEATURES + half * FEATURES // 2 + i]
    for head in range(heads)
    for i in range(FEATURES // 2)
    for half in (0, 1)
  ]
  return np.stack(rows)


def write_gguf(
  path: pathlib.Path,
  own: dict[str, np.ndarray],
  architecture: str = "llama",
  quantized: gguf.GGMLQuantizationType | None = None,
  begins: bool = False,
  lists: dict[str, list[int]] | None = None,
  **metadata,
) -> None:
  """Writes a GGUF file of weights; `metadata` replaces single values.

  Args:
    path: of the file.
    own: the weights.
    architecture: llama or qwen2.
    quantized: type of the matrices; None for float32.
    begins: whether a token comes before every text.
    lists: more metadata.
    **metadata: sizes that are to be others.
  """
  values = {
    "block_count": LAYERS,
    "context_length": 128,
    "embedding_length": WIDTH,
    "feed_forward_length": MLP,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "rope.dimension_count": FEATURES,
  } | metadata
  numbers = {
    "attention.layer_norm_rms_epsilon": EPSILON,
    "rope.freq_base": THETA,
  }
  tensors = {}
  for name, weight in own.items():
    if architecture == "llama" and ".attn_q.weight" in name:
      weight = interleaved(weight, HEADS)
    if architecture == "llama" and ".attn_k.weight" in name:
      weight = interleaved(weight, KV_HEADS)
    tensors[name] = weight
  write_gguf_of(
    path, architecture, tensors, values, numbers, {}, quantized, begins, lists
  )


def write_gguf_of(
  path: pathlib.Path,
  architecture: str,
  tensors: dict[str, np.ndarray],
  sizes: dict[str, int],
  numbers: dict[str, float],
  texts: dict[str, str],
  quantized: gguf.GGMLQuantizationType | None = None,
  begins: bool = False,
  lists: dict[str, list[int]] | None = None,
) -> None:
  """Writes a GGUF file of any architecture with the tokenizer of these files.

  Args:
    path: of the file.
    architecture: GGUF's name.
    tensors: as they are to be in the file.
    sizes: metadata of the architecture that are whole numbers.
    numbers: those that are numbers.
    texts: those that are texts.
    quantized: as of `write_gguf`.
    begins: as of `write_gguf`.
    lists: as of `write_gguf`.
  """
  writer = gguf.GGUFWriter(path, architecture)
  for name, value in sizes.items():
    writer.add_uint32(f"{architecture}.{name}", value)
  for name, value in numbers.items():
    writer.add_float32(f"{architecture}.{name}", value)
  for name, value in texts.items():
    writer.add_string(f"{architecture}.{name}", value)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("smollm")
  writer.add_token_list(tokens())
  writer.add_token_merges(list(MERGES))
  writer.add_token_types(
    [CONTROL if token in SPECIAL else NORMAL for token in tokens()]
  )
  writer.add_eos_token_id(2)
  writer.add_bos_token_id(0)
  writer.add_add_bos_token(begins)
  for name, values in (lists or {}).items():
    writer.add_array(name, values)
  writer.add_chat_template(TEMPLATE)
  for name, weight in tensors.items():
    if quantized is not None and weight.ndim == 2:
      blocks = gguf.quants.quantize(weight, quantized)
      writer.add_tensor(name, blocks, raw_dtype=quantized)
    else:
      writer.add_tensor(name, weight)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def logits(own: dict[str, np.ndarray], text: list[int]) -> np.ndarray:
  """What the model of these weights computes, token by token, in float64."""
  own = {name: weight.astype(np.float64) for name, weight in own.items()}
  hidden = own["token_embd.weight"][np.array(text)]
  for layer in range(LAYERS):
    blk = f"blk.{layer}"

    def linear(x, name, blk=blk):
      bias = own.get(f"{blk}.{name}.bias", 0.0)
      return x @ own[f"{blk}.{name}.weight"].T + bias

    normed = _norm(hidden, own[f"{blk}.attn_norm.weight"])
    queries = linear(normed, "attn_q").reshape(-1, HEADS, FEATURES)
    keys = linear(normed, "attn_k").reshape(-1, KV_HEADS, FEATURES)
    values = linear(normed, "attn_v").reshape(-1, KV_HEADS, FEATURES)
    mixed = np.zeros_like(queries)
    for at in range(len(text)):
      for head in range(HEADS):
        group = head * KV_HEADS // HEADS
        query = _rotated(queries[at, head], at)
        scores = np.array(
          [query @ _rotated(keys[s, group], s) for s in range(at + 1)]
        )
        scores = np.exp((scores - scores.max()) / np.sqrt(FEATURES))
        share = scores / scores.sum()
        mixed[at, head] = share @ values[: at + 1, group]
    hidden = hidden + linear(mixed.reshape(len(text), -1), "attn_output")
    normed = _norm(hidden, own[f"{blk}.ffn_norm.weight"])
    gate = linear(normed, "ffn_gate")
    gate = gate / (1 + np.exp(-gate))
    hidden = hidden + linear(gate * linear(normed, "ffn_up"), "ffn_down")
  output = own.get("output.weight", own["token_embd.weight"])
  return _norm(hidden, own["output_norm.weight"]) @ output.T


def _norm(x, scale):
  return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + EPSILON) * scale


def _rotated(x, position):
  """Turns pair (i, i + D/2) by position · θ^(−2i/D), as complex numbers."""
  half = FEATURES // 2
  angles = position * THETA ** (-np.arange(half) / half)
  turned = (x[:half] + 1j * x[half:]) * np.exp(1j * angles)
  return np.concatenate([turned.real, turned.imag])
