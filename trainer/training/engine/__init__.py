"""One training step: DeepSpeed's engine, the optimizer, the loss."""
