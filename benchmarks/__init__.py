"""What is measured, each against a named peer or limit in the same run. `make bench` runs all."""
