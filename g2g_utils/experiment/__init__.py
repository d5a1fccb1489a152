"""The experiment: a profile's products (plan), how they are made (recipes) and at what cost."""

from g2g_utils.experiment import novelty, presence, recipes, scores

__all__ = ["novelty", "presence", "recipes", "scores"]  # importing them fills the table of products
