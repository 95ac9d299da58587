"""Compares a new model with the best one so far."""
