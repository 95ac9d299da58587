"""Memory, budget and what stops or refuses a run."""
