"""StableAdamW, its parameter groups, and schedulers for a bare Trainer."""
