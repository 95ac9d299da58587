"""Tries a new model, and keeps the ones that served."""
