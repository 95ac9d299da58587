"""`finetune rehearse`."""
