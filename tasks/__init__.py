"""Prefect tasks, one for each step: parameters to config, backend, outcome, artifacts."""
