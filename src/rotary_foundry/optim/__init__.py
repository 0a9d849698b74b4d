"""StableAdamW, AdamW, their parameter groups, and schedulers for a bare Trainer."""
