"""Tensors of checkpoints, read by slices; the only part of a checkpoint that needs torch."""
