"""Decoder-only transformer of the families that descend from Llama.

Blocks of grouped-query attention with rotary positions, and of a gated linear
unit, with RMSNorm. Options of the configuration give the families' variants.
Sequences are padded on the left, so all sequences write their next token to the
same slot; positions count from the first real token.

Shapes: B sequences, L tokens, S cache slots, V vocabulary, H query heads in
groups that share one of K key-value heads, D features per head.

Source: Touvron et al. 2023, arXiv:2302.13971 (Llama); Ainslie et al. 2023,
arXiv:2305.13245 (grouped queries); Su et al. 2021, arXiv:2104.09864 (rotary);
Gemma Team 2024, arXiv:2408.00118 (caps, norms around, windows); OLMo Team 2024,
arXiv:2501.00656 (norms after).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lco_jax.networks import narrow_matrices, products

# Score of masked slots: gives attention weight 0 and, unlike −inf, no NaN.
_MASKED_SCORE = -1e30
# Sees all earlier tokens: a window longer than any text.
_NO_WINDOW = 2**30
# Models with at most this many layers are unrolled. A loop copies each layer's
# activations for the backward pass, which costs small models more than their
# matrix products. Larger models run and compile faster as a loop.
_MAX_UNROLLED = 4


# Of the gated linear unit.
ACTIVATIONS = {
  "silu": nn.silu,
  "gelu": functools.partial(nn.gelu, approximate=True),
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Sizes and options of a transformer.

  Attributes:
    vocab_size: V.
    num_layers: number of blocks.
    width: features per token.
    num_heads: H.
    num_kv_heads: K, a divisor of H.
    mlp_width: hidden features of the gated linear unit.
    head_dim: D, even; None for width / H.
    rope_theta: base of the rotary wavelengths.
    rope_divisors: D / 2 numbers that divide the rotary frequencies, by which
      models are extended to longer texts; None for 1.
    rope_amplitude: factor of rotated queries and keys.
    window: earlier tokens that a windowed layer sees, the own included; None
      for all.
    window_layers: numbers of the windowed layers; None for all layers.
    window_rope_theta: base of the rotary wavelengths of windowed layers, which
      have no divisors; None for those of the others.
    unrotated_layers: numbers of the layers without rotary positions.
    activation: of the gated linear unit, a key of ACTIVATIONS.
    norms: where RMSNorm is: before attention and the gated linear unit, after
      them, or around them, which is both.
    query_key_norm: whether RMSNorm of queries and keys is over the features of
      each "head", over those of "all" heads, or absent, None.
    embedding_scale: factor of the embeddings.
    attention_scale: factor of queries · keys; None for D^(-1/2).
    attention_cap: c in c tanh(score / c) of attention; None for none.
    logit_cap: c in c tanh(logit / c) of the output; None for none.
    norm_epsilon: ε of RMSNorm.
    tied_embeddings: whether the output layer shares the embedding's weights.
    qkv_bias: whether queries, keys and values have biases, as in Qwen2.
    dtype: of the computation, float32 or bfloat16; parameters, attention
      weights and logits are float32. float64, which needs jax_enable_x64, helps
      to tell rounding from errors.
    rematerialize: whether the backward pass recomputes the blocks.
  """

  vocab_size: int
  num_layers: int
  width: int
  num_heads: int
  num_kv_heads: int
  mlp_width: int
  head_dim: int | None = None
  rope_theta: float = 10_000.0
  rope_divisors: tuple[float, ...] | None = None
  rope_amplitude: float = 1.0
  window: int | None = None
  window_layers: tuple[int, ...] | None = None
  window_rope_theta: float | None = None
  unrotated_layers: tuple[int, ...] = ()
  activation: str = "silu"
  norms: str = "before"
  query_key_norm: str | None = None
  embedding_scale: float = 1.0
  attention_scale: float | None = None
  attention_cap: float | None = None
  logit_cap: float | None = None
  norm_epsilon: float = 1e-6
  tied_embeddings: bool = True
  qkv_bias: bool = False
  dtype: str = "float32"
  rematerialize: bool = False

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is int and value < 1:
        raise ValueError(f"{field.name} must be ≥ 1, got {value}")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_kv_heads {self.num_kv_heads} does not divide"
        f" num_heads {self.num_heads}"
      )
    if self.head_dim is None and self.width % self.num_heads:
      raise ValueError(
        f"num_heads {self.num_heads} does not divide width {self.width}"
      )
    if self.head_features % 2:
      raise ValueError(f"head_dim must be even, got {self.head_features}")
    for name, known in (
      ("activation", tuple(ACTIVATIONS)),
      ("norms", ("before", "after", "around")),
      ("query_key_norm", (None, "head", "all")),
    ):
      value = getattr(self, name)
      if value not in known:
        raise ValueError(f"{name} {value!r} is not among {known}")
    divisors = self.rope_divisors
    if divisors is not None and len(divisors) != self.head_features // 2:
      raise ValueError(
        f"rope_divisors has {len(divisors)} numbers, not head_dim / 2 ="
        f" {self.head_features // 2}"
      )
    for name in ("window_layers", "unrotated_layers"):
      for number in getattr(self, name) or ():
        if not 0 <= number < self.num_layers:
          raise ValueError(f"{name}: there is no layer {number}")
    known = ("float32", "bfloat16")
    if self.dtype not in (*known, "float64"):
      raise ValueError(f"dtype must be float32 or bfloat16, got {self.dtype!r}")
    if self.dtype not in known and not jax.config.jax_enable_x64:
      raise ValueError("dtype float64 needs jax_enable_x64")

  @property
  def head_features(self) -> int:
    """D."""
    return self.head_dim or self.width // self.num_heads


class Layer(NamedTuple):
  """Where layers of one model differ; a layer axis comes first for several.

  Attributes:
    frequencies: float[D / 2], turn of each rotary pair from token to token.
    amplitude: float[], factor of rotated queries and keys.
    window: int32[], earlier tokens that are seen; None for all.
  """

  frequencies: Any
  amplitude: Any
  window: Any


def list_layers(config: TransformerConfig) -> tuple[Layer, ...]:
  """Lists how each layer rotates and how far it sees, in NumPy's float64."""
  half = config.head_features // 2
  exponents = -np.arange(half) / half
  divisors = (
    np.ones(half)
    if config.rope_divisors is None
    else np.asarray(config.rope_divisors, np.float64)
  )
  windowed = range(config.num_layers)
  if config.window is None:
    windowed = ()
  elif config.window_layers is not None:
    windowed = config.window_layers
  layers = []
  for number in range(config.num_layers):
    frequencies = config.rope_theta**exponents / divisors
    amplitude = np.float64(config.rope_amplitude)
    if number in windowed and config.window_rope_theta is not None:
      frequencies = config.window_rope_theta**exponents
      amplitude = np.float64(1.0)
    if number in config.unrotated_layers:  # Turned by no angle.
      frequencies, amplitude = np.zeros(half), np.float64(1.0)
    window = None
    if windowed:
      window = np.int32(config.window if number in windowed else _NO_WINDOW)
    layers.append(Layer(frequencies, amplitude, window))
  return tuple(layers)


def _are_alike(layers: tuple[Layer, ...]) -> bool:
  return all(
    jax.tree.all(jax.tree.map(np.array_equal, layers[0], layer))
    for layer in layers
  )


class KVCache(NamedTuple):
  """Keys and values of the tokens read so far.

  Attributes:
    keys: float[layers, B, K, S, D], rotated; a single layer's cache has no
      layer axis.
    values: float[layers, B, K, S, D].
  """

  keys: Array
  values: Array


class Slots(NamedTuple):
  """Slots of the tokens of one call.

  Attributes:
    start: int32[], slot of the first token.
    padding: int32[B], number of padded slots on the left.
  """

  start: Array
  padding: Array


def empty_cache(
  config: TransformerConfig, batch_size: int, num_slots: int
) -> KVCache:
  """Makes a zero cache for B sequences of S slots."""
  shape = (
    config.num_layers,
    batch_size,
    config.num_kv_heads,
    num_slots,
    config.head_features,
  )
  zeros = jnp.zeros(shape, config.dtype)
  return KVCache(zeros, zeros)


def make_reader(
  config: TransformerConfig,
  params: Any,
  batch_size: int,
  num_slots: int,
) -> tuple[Callable[..., Any], Any]:
  """Makes a faster `Transformer.hidden` for repeated incremental calls.

  A loop over stacked layers copies each layer's weights and cache out of the
  stack and back on every call. The reader unstacks the layers once.

  Args:
    config: sizes and options.
    params: parameters of the transformer.
    batch_size: B.
    num_slots: S.

  Returns:
    ((tokens, padding, cache, start) → (hidden, cache), and an empty cache of
    arrays [B, ...]: a KVCache per layer, or one [B, layers, ...] for narrow
    matrices).
  """
  own = params["params"]
  if narrow_matrices.is_narrow(params):  # Unstacked, all would stay widened.

    def read_stacked(tokens, padding, cache, start):
      hidden, cache = read_narrow(
        config, params, tokens, padding, _swap_axes(cache), start
      )
      return hidden, _swap_axes(cache)

    return read_stacked, _swap_axes(empty_cache(config, batch_size, num_slots))
  layers = [
    jax.tree.map(lambda leaf, layer=layer: leaf[layer], own["blocks"])
    for layer in range(config.num_layers)
  ]
  block, traits = Block(config), list_layers(config)
  whole = empty_cache(config, batch_size, num_slots)

  def read(tokens, padding, cache, start):
    slots = Slots(jnp.asarray(start, jnp.int32), padding)
    hidden = _embed(config, params, tokens)
    written = []
    for layer, trait, before in zip(layers, traits, cache, strict=True):
      variables = {"params": layer}
      hidden, after = block.apply(variables, hidden, slots, trait, before)
      written.append(after)
    return _finish(config, params, tokens, hidden), tuple(written)

  return read, tuple(
    KVCache(keys, values)
    for keys, values in zip(whole.keys, whole.values, strict=True)
  )


def _swap_axes(cache: KVCache) -> KVCache:
  """Swaps the axes of layers and of sequences."""
  return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), cache)


def read_narrow(
  config: TransformerConfig,
  params: Any,
  tokens: Array,
  padding: Array,
  cache: KVCache | None = None,
  start=0,
) -> tuple[Array, KVCache | None]:
  """`Transformer.hidden` of narrow matrices, widened layer by layer."""
  slots = Slots(jnp.asarray(start, jnp.int32), padding)
  block = Block(config)

  def step(hidden, own):
    layer, trait, before = own
    return block.apply(
      {"params": narrow_matrices.widen(layer)}, hidden, slots, trait, before
    )

  # Else the backward pass would keep the widened matrices of all layers.
  step = jax.checkpoint(step, prevent_cse=False)
  traits = jax.tree.map(jnp.asarray, _stack(list_layers(config)))
  hidden, cache = jax.lax.scan(
    step,
    _embed(config, params, tokens),
    (params["params"]["blocks"], traits, cache),
  )
  return _finish(config, params, tokens, hidden), cache


def _embed(config: TransformerConfig, params: Any, tokens: Array) -> Array:
  """Embeds tokens [B, L]: [B · L, width]."""
  embedding = params["params"]["embed"]["embedding"]
  rows = narrow_matrices.take_rows(embedding, tokens.reshape(-1))
  return _scale(rows.astype(config.dtype), config.embedding_scale)


def _finish(
  config: TransformerConfig, params: Any, tokens: Array, hidden: Array
) -> Array:
  """Final hidden states, [B, L, width]."""
  own = {"params": params["params"]["final_norm"]}
  return _norm(config).apply(own, hidden).reshape(*tokens.shape, -1)


class Transformer(nn.Module):
  """Maps tokens to logits or values: `hidden`, then `head`.

  Attributes:
    config: sizes and options.
    num_outputs: outputs of a linear head; None for logits over the vocabulary.
  """

  config: TransformerConfig
  num_outputs: int | None = None

  def setup(self):
    """Makes the layers; their attribute names name the parameters."""
    config = self.config
    self.embed = nn.Embed(
      config.vocab_size,
      config.width,
      dtype=config.dtype,
      embedding_init=nn.initializers.normal(config.width**-0.5),
    )
    block = (
      nn.remat(Block, prevent_cse=False) if config.rematerialize else Block
    )
    # Parameters and cache of all blocks are stacked along a layer axis.
    # Where layers are alike, how they rotate is a constant of the program.
    layers = list_layers(config)
    alike = _are_alike(layers)
    self.layers = layers[0] if alike else _stack(layers)
    blocks = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(nn.broadcast, nn.broadcast if alike else 0, 0),
      length=config.num_layers,
      unroll=config.num_layers if config.num_layers <= _MAX_UNROLLED else 1,
    )
    self.blocks = blocks(config)
    self.final_norm = _norm(config)
    if self.num_outputs is not None or not config.tied_embeddings:
      self.output = _dense(
        config, self.num_outputs or config.vocab_size, widened=True
      )

  def __call__(
    self, tokens: Array, padding: Array, cache: KVCache | None = None, start=0
  ) -> tuple[Array, KVCache | None]:
    """Reads tokens that follow the cached tokens.

    Args:
      tokens: int32[B, L].
      padding: int32[B], slots to ignore on the left of the sequence.
      cache: earlier tokens; None to read a whole sequence at once.
      start: slot of the first token; 0 without a cache.

    Returns:
      (float32[B, L, V] or [B, L, num_outputs]; the cache with these tokens).
    """
    hidden, cache = self.hidden(tokens, padding, cache, start)
    return self.head(hidden), cache

  def hidden(
    self, tokens: Array, padding: Array, cache: KVCache | None = None, start=0
  ) -> tuple[Array, KVCache | None]:
    """Final hidden states, the input of `head`: (float[B, L, width], cache)."""
    slots = Slots(jnp.asarray(start, jnp.int32), padding)
    # Outside attention, all tokens share one axis: the fastest matrix products.
    hidden = self.embed(tokens.reshape(-1))
    hidden = _scale(hidden, self.config.embedding_scale)
    hidden, cache = self.blocks(hidden, slots, self.layers, cache)
    hidden = self.final_norm(hidden)
    return hidden.reshape(*tokens.shape, -1), cache

  def head(self, hidden: Array) -> Array:
    """Maps final hidden states float[..., width] to float32[..., V]."""
    if self.num_outputs is not None:
      return self.output(hidden)
    if not self.config.tied_embeddings:
      return _cap(self.output(hidden), self.config.logit_cap)
    embedding = self.embed.embedding.astype(hidden.dtype)
    logits = products.multiply_rows("rw,vw->rv", hidden, embedding)
    return _cap(logits, self.config.logit_cap)


class Block(nn.Module):
  """One layer: attention, then the MLP, each with a residual connection."""

  config: TransformerConfig

  @nn.compact
  def __call__(
    self, hidden: Array, slots: Slots, layer: Layer, cache: KVCache | None
  ) -> tuple[Array, KVCache | None]:
    """float[B · L, width] → the same; layer and cache are this layer's."""
    config = self.config

    def norm(x, name, place):
      if config.norms not in (place, "around"):
        return x
      return _norm(config, name)(x)

    attend = Attention(config, name="attention")
    normed = norm(hidden, "attention_norm", "before")
    attended, cache = attend(normed, slots, layer, cache)
    hidden = hidden + norm(attended, "after_attention_norm", "after")
    normed = norm(hidden, "mlp_norm", "before")
    gate = _dense(config, config.mlp_width, "gate")(normed)
    up = _dense(config, config.mlp_width, "up")(normed)
    down = _dense(config, config.width, "down", residual=True)
    activate = ACTIVATIONS[config.activation]
    mixed = down(activate(gate) * up)
    return hidden + norm(mixed, "after_mlp_norm", "after"), cache


class Attention(nn.Module):
  """Causal grouped-query attention with rotary positions."""

  config: TransformerConfig

  @nn.compact
  def __call__(
    self, x: Array, slots: Slots, layer: Layer, cache: KVCache | None
  ) -> tuple[Array, KVCache | None]:
    """float[B · L, width] → the same."""
    config = self.config
    batch = slots.padding.shape[0]
    length = x.shape[0] // batch
    num_kv, features = config.num_kv_heads, config.head_features

    def project(name, heads):
      dense = _dense(config, heads * features, name, bias=config.qkv_bias)
      return dense(x).reshape(batch, length, heads, features)

    def project_normed(name, heads):
      projected = project(name, heads)
      if config.query_key_norm is None:
        return projected
      norm = _norm(config, f"{name}_norm")
      if config.query_key_norm == "head":
        return norm(projected)
      flat = projected.reshape(batch, length, -1)
      return norm(flat).reshape(projected.shape)

    own_slots = slots.start + jnp.arange(length)  # [L]
    positions = own_slots[None] - slots.padding[:, None]  # [B, L]
    query = _rotate(project_normed("query", config.num_heads), positions, layer)
    key = _rotate(project_normed("key", num_kv), positions, layer)
    # The head axis precedes the slots: each head's keys are contiguous.
    key, value = (
      jnp.swapaxes(x, 1, 2) for x in (key, project("value", num_kv))
    )
    if cache is not None:
      at = (0, 0, slots.start, 0)
      key = jax.lax.dynamic_update_slice(cache.keys, key, at)
      value = jax.lax.dynamic_update_slice(cache.values, value, at)
      cache = KVCache(key, value)
    read = jnp.arange(key.shape[2])  # [S]
    allowed = (read[None, None] <= own_slots[None, :, None]) & (
      read[None, None] >= slots.padding[:, None, None]
    )  # [B, L, S]
    if layer.window is not None:
      allowed &= (own_slots[:, None] - read[None] < layer.window)[None]
    # Merge a group's queries of all tokens: one product per key-value head.
    query = query.reshape(batch, length, num_kv, -1, features)
    query = query.transpose(0, 2, 3, 1, 4)  # [B, K, group, L, D]
    grouped = query.shape
    scores = products.product(
      "bkmd,bksd->bkms", query.reshape(batch, num_kv, -1, features), key
    ).reshape(*grouped[:-1], -1)
    scale = features**-0.5
    if config.attention_scale is not None:
      scale = config.attention_scale
    scores = _cap(scores * scale, config.attention_cap)
    scores = jnp.where(allowed[:, None, None], scores, _MASKED_SCORE)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    mixed = products.product(
      "bkms,bksd->bkmd",
      weights.reshape(batch, num_kv, -1, weights.shape[-1]),
      value,
    ).astype(value.dtype)
    mixed = mixed.reshape(grouped).transpose(0, 3, 1, 2, 4)
    output = _dense(config, config.width, "output", residual=True)
    return output(mixed.reshape(batch * length, -1)), cache


def _rotate(x: Array, positions: Array, layer: Layer) -> Array:
  """Rotates pairs (i, i + D/2) of float[B, L, heads, D] by their position."""
  wide = jnp.promote_types(x.dtype, jnp.float32)
  angles = positions[..., None, None].astype(wide) * jnp.asarray(
    layer.frequencies[None, None, None], wide
  )
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  if not isinstance(layer.amplitude, np.float64) or layer.amplitude != 1.0:
    amplitude = jnp.asarray(layer.amplitude, wide)
    cos, sin = cos * amplitude, sin * amplitude
  first, second = jnp.split(x.astype(wide), 2, axis=-1)
  rotated = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return rotated.astype(x.dtype)


def _stack(layers: tuple[Layer, ...]) -> Layer:
  """Stacks what layers differ in along a layer axis."""
  return jax.tree.map(lambda *own: np.stack(own), *layers)


def _scale(x: Array, factor: float) -> Array:
  """x times a factor, rounded to the dtype of x; x itself for 1."""
  return x if factor == 1.0 else x * jnp.asarray(factor, x.dtype)


def _cap(x: Array, cap: float | None) -> Array:
  """c tanh(x / c), which lies between -c and c; x itself for None."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def _norm(config: TransformerConfig, name: str | None = None) -> nn.Module:
  """x / rms(x) times a learned scale, computed in float32."""
  return nn.RMSNorm(config.norm_epsilon, dtype=config.dtype, name=name)


def _dense(
  config: TransformerConfig,
  features: int,
  name: str | None = None,
  bias: bool = False,
  residual: bool = False,
  widened: bool = False,
) -> Any:
  """Makes a linear layer.

  Args:
    config: sizes and options of the transformer.
    features: size of the output.
    name: name of the parameters.
    bias: whether to add a bias.
    residual: whether the output adds to the residual stream, which scales the
      initial weights down.
    widened: whether the output is float32 for every computation dtype.
  """
  gain = 1.0 / (2 * config.num_layers) if residual else 1.0
  return nn.Dense(
    features,
    use_bias=bias,
    dtype=config.dtype,
    kernel_init=nn.initializers.variance_scaling(gain, "fan_in", "normal"),
    dot_general=(
      products.widened_product if widened else products.dense_product
    ),
    name=name,
  )
