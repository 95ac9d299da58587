"""The inference server: continuous batching behind V1, V2 and OpenAI's routes."""
