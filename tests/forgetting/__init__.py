"""Forgetting documents, and the certificate of it."""
