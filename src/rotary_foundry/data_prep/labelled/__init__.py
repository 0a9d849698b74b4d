"""Labelled examples: where they are, how they are read, and how they become tokens and numbers of labels."""
