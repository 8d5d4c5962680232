"""Published configurations of models, to compile for them without weights.

Source: the config.json of each model on the hub, without what computes nothing.
"""

from typing import Any

_LLAMA_SCALING = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}
_LLAMA_31 = {
  "model_type": "llama",
  "vocab_size": 128_256,
  "num_key_value_heads": 8,
  "rope_theta": 500_000.0,
  "rope_scaling": _LLAMA_SCALING,
  "rms_norm_eps": 1e-5,
  "max_position_embeddings": 131_072,
  "tie_word_embeddings": False,
}
SHAPES: dict[str, dict[str, Any]] = {
  "llama-3.1-8b": _LLAMA_31
  | {
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
  },
  "llama-3.1-70b": _LLAMA_31
  | {
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
  },
  "qwen2.5-7b": {
    "model_type": "qwen2",
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": False,
  },
}
