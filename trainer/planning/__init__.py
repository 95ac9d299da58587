"""Arithmetic: memory, time, money and rules of settings. Imports only `trainer.contract`."""
