"""What runs inside a step: tokenizer, training loop, checkpoints, evaluation, server."""
