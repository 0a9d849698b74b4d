"""A run's folder, checkpoints, store, records and environment: each known in one place."""
