"""Run some steps of a run again, bit for bit, and measure more: `finetune replay`."""
