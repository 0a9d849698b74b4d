"""A Trainer from a recipe, and a run of it."""
