"""Take a finished run's model elsewhere: to a Hugging Face hub, or into a GGUF file."""
