"""The model exam: does this pipeline train, save and serve this architecture right?

    small_copy.py   a small copy of the architecture, with every feature of its config
    checks.py       loss, causality and cache of the copy against transformers
    small_run.py    a scratch volume, and short runs on it by the training step's own code
    run_checks.py   runs of the copy: at rate 0, resumed, in two processes, with adapters
    examine.py      all checks on one model; `python -m trainer.exam CONFIG.json RESULT.json`
    kept.py         results that are kept, what they mean for a request; loads no torch
    every_model.py  every causal language model of transformers, for docs/models.md

It takes seconds on a CPU and is done once per config, code and versions. It runs in a process
of its own: a model that crashes it fails it.
"""
