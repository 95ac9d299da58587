"""Prefect automations: restarts, notifications, changed data."""
