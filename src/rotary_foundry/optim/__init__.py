"""The optimizers that a recipe can name (StableAdamW, AdamW and LAMB) and their parameter groups."""
