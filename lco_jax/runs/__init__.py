"""Runs: training on disk and over processes."""
