"""Generates text: batches, cache, sampling."""
