"""StableAdamW."""
