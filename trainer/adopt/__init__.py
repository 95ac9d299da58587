"""Makes a model that the upstream workflow trained servable."""
