"""Configuration files for ml_collections, each with a get_config()."""
