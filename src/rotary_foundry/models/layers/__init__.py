"""Layers that families share: attention and its backends, rotary positions, documents, cross entropy."""
