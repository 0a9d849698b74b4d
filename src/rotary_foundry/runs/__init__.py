"""The folder, checkpoints, store, records and environment of a run, each with one module."""
