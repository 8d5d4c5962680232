"""Flax networks with pure init and apply and plain pytrees of parameters."""

from lco_jax.networks.actor_critic import ActorCritic, make_actor_critic
from lco_jax.networks.language_model import (
  LanguageModel,
  copy_body,
  make_language_model,
  make_value_model,
  select_attention,
  select_head,
)
from lco_jax.networks.low_rank import adapt, init_adapters
from lco_jax.networks.narrow_matrices import FORMATS as NARROW_FORMATS
from lco_jax.networks.narrow_matrices import (
  count_numbers,
  is_narrow,
  narrow,
  widen,
)
from lco_jax.networks.packing import make_packing, pack, unpack
from lco_jax.networks.partitioning import check_divisible, gather_all
from lco_jax.networks.transformer_config import TransformerConfig

__all__ = [
  "NARROW_FORMATS",
  "ActorCritic",
  "LanguageModel",
  "TransformerConfig",
  "adapt",
  "check_divisible",
  "copy_body",
  "count_numbers",
  "gather_all",
  "init_adapters",
  "make_actor_critic",
  "make_language_model",
  "make_value_model",
  "is_narrow",
  "make_packing",
  "narrow",
  "pack",
  "select_attention",
  "select_head",
  "unpack",
  "widen",
]
