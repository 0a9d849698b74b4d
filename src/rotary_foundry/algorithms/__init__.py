"""Composer algorithms that change training."""
