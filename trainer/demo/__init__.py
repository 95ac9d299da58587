"""Demo data and model, made on the spot: `python -m trainer.demo --volume FOLDER`.

Nothing is downloaded: western tales from a seeded grammar, a byte-level BPE
tokenizer trained on them, and a small GPT-J with random weights. The demo then is
an ordinary run with ordinary parameters. Takes about ten seconds, most of it the
import of torch and transformers; nothing at all where everything is there.
"""
