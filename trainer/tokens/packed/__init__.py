"""Several whole documents in a context: which go together, and the store of plain text's."""
