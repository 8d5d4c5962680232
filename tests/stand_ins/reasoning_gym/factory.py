"""The tasks by name."""

DATASETS = {}
