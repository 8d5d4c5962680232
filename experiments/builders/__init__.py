"""Builds runs from their settings."""
