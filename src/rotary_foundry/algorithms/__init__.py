"""Composer algorithms: what changes training itself."""
