"""Rows, packing, preparation of rows, and the training stream."""
