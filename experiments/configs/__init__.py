"""Configurations: get_config() files for ml_collections."""
