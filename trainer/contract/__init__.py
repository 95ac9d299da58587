"""What steps, places and flows agree on. Imports nothing else of this project."""
