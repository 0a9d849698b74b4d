"""StableAdamW and its parameter groups."""
