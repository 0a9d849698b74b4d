"""Build a Trainer from a recipe, and run it."""
