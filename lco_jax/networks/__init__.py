"""Flax networks: init and apply are pure, parameters are plain pytrees."""

from lco_jax.networks.actor_critic import ActorCritic, make_actor_critic

__all__ = ["ActorCritic", "make_actor_critic"]
