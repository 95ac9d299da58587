"""Several processes and several nodes."""
