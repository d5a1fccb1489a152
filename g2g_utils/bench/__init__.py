"""The bench: one score for every method, statistics over pairs, ablations and claims."""
