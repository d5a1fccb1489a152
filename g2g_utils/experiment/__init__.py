"""The experiment: a profile's products (plan), how they are made (recipes) and at what cost."""

from g2g_utils.experiment import novelty, presence, recipes, scores, skill

__all__ = ["novelty", "presence", "recipes", "scores", "skill"]  # importing them fills the table
