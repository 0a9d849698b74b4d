"""StableAdamW and the schedulers."""
