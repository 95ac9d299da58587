"""HTTP: the routes and their bodies."""
