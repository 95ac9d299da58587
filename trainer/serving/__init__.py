"""The inference server: continuous batching behind the kserve SDK's model server."""
