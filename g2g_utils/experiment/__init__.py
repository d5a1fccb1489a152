"""The experiment: what a profile makes (plan), how (products, recipes) and at what cost."""
