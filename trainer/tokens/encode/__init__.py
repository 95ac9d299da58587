"""From documents to ids."""
