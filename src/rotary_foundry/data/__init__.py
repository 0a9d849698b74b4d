"""Rows, packing, masking and the training stream."""
