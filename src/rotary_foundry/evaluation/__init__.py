"""Evaluation suites for encoders and decoders, ours or any others."""
