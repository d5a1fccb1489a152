"""Baselines that a grounding model has to beat."""
