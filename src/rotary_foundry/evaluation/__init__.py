"""Evaluation suites for any masked language model, one of ours or any other."""
