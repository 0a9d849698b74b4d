"""The optimizers that a recipe can name, StableAdamW and AdamW, and their parameter groups."""
