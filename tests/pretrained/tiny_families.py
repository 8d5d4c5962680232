"""Tiny configurations of each family, and random weights by their names."""

import zlib

import numpy as np

_SIZES = {
  "vocab_size": 288,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 4,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
  "tie_word_embeddings": False,
}
_GEMMA = {
  "head_dim": 12,
  "query_pre_attn_scalar": 20,
  "sliding_window": 8,
  "tie_word_embeddings": True,
  "hidden_activation": "gelu_pytorch_tanh",
}
_FULL, _WINDOWED = "full_attention", "sliding_attention"


def _scaled(kind, **values):
  return {"rope_scaling": {"rope_type": kind, **values}}


_OWN = {
  "llama": {"model_type": "llama", "rope_theta": 500.0},
  "llama3_rope": {
    "model_type": "llama",
    **_scaled(
      "llama3",
      factor=8.0,
      low_freq_factor=1.0,
      high_freq_factor=4.0,
      original_max_position_embeddings=16,
    ),
  },
  "linear_rope": {"model_type": "llama", **_scaled("linear", factor=4.0)},
  "dynamic_rope": {"model_type": "llama", **_scaled("dynamic", factor=4.0)},
  "yarn_rope": {
    "model_type": "qwen2",
    **_scaled("yarn", factor=4.0, original_max_position_embeddings=16),
  },
  "qwen2": {"model_type": "qwen2", "rms_norm_eps": 1e-5},
  "qwen2_window": {
    "model_type": "qwen2",
    "use_sliding_window": True,
    "sliding_window": 8,
    "max_window_layers": 2,
  },
  "qwen3": {"model_type": "qwen3", "head_dim": 12},
  "mistral": {"model_type": "mistral", "sliding_window": 8, "head_dim": 12},
  "phi3": {"model_type": "phi3", "sliding_window": 8, "pad_token_id": 0},
  "phi3_longrope": {
    "model_type": "phi3",
    "pad_token_id": 0,
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 64,
    **_scaled(
      "longrope",
      short_factor=[1.0, 1.5, 2.0, 3.0],
      long_factor=[1.0, 2.0, 4.0, 8.0],
    ),
  },
  "gemma2": {"model_type": "gemma2", **_GEMMA},
  "gemma3": {
    "model_type": "gemma3_text",
    **_GEMMA,
    "layer_types": [_WINDOWED, _WINDOWED, _FULL, _WINDOWED],
    "rope_theta": 10_000.0,
    "rope_local_base_freq": 100.0,
    **_scaled("linear", factor=8.0),
  },
  "smollm3": {
    "model_type": "smollm3",
    "no_rope_layers": [1, 1, 0, 1],
    "tie_word_embeddings": True,
    "pad_token_id": 0,
  },
  "olmo2": {"model_type": "olmo2"},
}
CONFIGS = {name: _SIZES | own for name, own in _OWN.items()}
# Text that the models read, and what is kept of their logits.
TOKENS = [3 + 7 * i % 250 for i in range(40)]
POSITIONS, WIDTH = (0, 9, 39), 24


def make_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Random float32 weights; the same name has the same."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  if len(shape) == 1:
    return rng.uniform(-0.4, 0.6, shape).astype(np.float32)
  return rng.normal(0, 1.5 * shape[-1] ** -0.5, shape).astype(np.float32)
