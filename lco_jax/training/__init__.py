"""The scanned training step, whatever is trained."""
