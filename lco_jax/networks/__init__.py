"""Flax networks: init and apply are pure, parameters are plain pytrees."""

from lco_jax.networks.actor_critic import ActorCritic, make_actor_critic
from lco_jax.networks.language_model import (
  LanguageModel,
  attention_of,
  head_of,
  make_language_model,
  make_value_model,
  with_body_of,
)
from lco_jax.networks.low_rank import adapted, init_adapters
from lco_jax.networks.transformer import TransformerConfig

__all__ = [
  "ActorCritic",
  "LanguageModel",
  "TransformerConfig",
  "adapted",
  "attention_of",
  "head_of",
  "init_adapters",
  "make_actor_critic",
  "make_language_model",
  "make_value_model",
  "with_body_of",
]
