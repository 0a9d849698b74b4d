"""Labelled examples: locate them, read them, and turn them into tokens and label numbers."""
