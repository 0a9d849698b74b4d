"""A recipe: one YAML file that is one whole training run, and the plan compiled from it. Imports no torch."""
