"""Corpora to a tokenizer and packed shards."""
