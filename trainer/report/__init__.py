"""One page about a run: curves, samples, data, plan against fact, time. Loads nothing heavy."""
