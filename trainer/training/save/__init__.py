"""Checkpoints and the final model."""
