"""The first step: check what can only be checked on the volume, and bring the model there.

    place.py         the volume itself: there, writable, not full; the run's name
    dataset.py       the dataset has text
    model_folder.py  a model's folder: config, weights, tokenizer, limits; imports no torch
    weights.py       headers of safetensors files
    tokenizer_folder.py  how many token ids a tokenizer uses
    hub.py           a model of the Hugging Face hub: once, resumable, whole or not at all
    hub_client.py    the calls to the hub
    step.py          the step
    look.py          the plan step: the same checks, and what a plan is made from

Everything that is wrong is reported at once, before anything starts.
"""

from trainer.fetch.step import run

__all__ = ["run"]
