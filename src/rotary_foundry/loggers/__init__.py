"""Composer loggers, and the keys that a run logs."""
