"""The finetune step: DeepSpeed engines, exact resume, checkpoints, the final model."""
