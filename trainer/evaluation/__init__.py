"""Compares the base model with the finetuned one on held-out text."""
