"""Flax networks: init and apply are pure, parameters are plain pytrees."""

from lco_jax.networks.actor_critic import ActorCritic, make_actor_critic
from lco_jax.networks.language_model import LanguageModel, make_language_model
from lco_jax.networks.transformer import TransformerConfig

__all__ = [
  "ActorCritic",
  "LanguageModel",
  "TransformerConfig",
  "make_actor_critic",
  "make_language_model",
]
