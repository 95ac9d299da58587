"""Requests and results of the upstream Argo workflow."""
