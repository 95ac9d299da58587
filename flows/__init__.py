"""Flows compose tasks; their parameters; the `finetune` command line."""
