"""Which contexts a step trains on, and the held-out ones."""
