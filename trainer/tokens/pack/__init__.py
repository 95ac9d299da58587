"""From ids to contexts in a store."""
