"""From files of text to a store of token contexts: right to the id, cached by content.

step.py        the tokenize step: find the store, or have it made
making.py      what making one takes, in order
encoding.py    what is made, with which encoder
sources.py     which files, in which order
digests.py     their SHA-256, remembered
parts.py       what a long file is read in
reading.py     bytes -> documents (text, compressed, remote)
records.py     JSONL and parquet -> documents
documents.py   what these two speak of
sanitize.py    text as the rules want it
cuts.py        where long text may be cut
model_tokenizer.py  the tokenizer of a model's folder, as its tokenizer.json says
vocabulary.py  what packing needs of it (export.py: in a process of its own)
byte_level.py  how byte-level vocabularies spell bytes
samples.py     stretches of the corpus, to prove an encoder on
encoder.py     text -> ids, by the fastest encoder that is proven
pieces.py      encoded text, kept for the next store
worker.py      makes pieces
crew.py        the processes that do it (cores.py: how many)
supply.py      pieces in order, made while they are asked for
split.py       what is held out
dividing.py    pieces -> parts of either side
packing.py     the stream -> contexts
ledger.py      where every token went
build.py       pieces -> store
store.py       a finished store
show.py        a store as text
prune.py       what may be deleted
"""
