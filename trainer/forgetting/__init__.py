"""Make a run again without some documents, and prove what came of it: `finetune forget`."""
