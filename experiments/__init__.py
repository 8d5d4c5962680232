"""Experiment scripts: the only readers of flags."""
