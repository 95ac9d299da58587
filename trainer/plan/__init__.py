"""The plan step: what a request needs, measured where its data is."""
