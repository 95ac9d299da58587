"""Where steps run: local processes, Kubernetes Jobs, inference services."""
