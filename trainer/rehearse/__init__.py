"""A small copy of a request's model and text, for a rehearsal."""
