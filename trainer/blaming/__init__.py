"""Find the documents that made a model better or worse, and prove it: `finetune blame`."""
