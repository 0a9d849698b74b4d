"""Turn corpora into a tokenizer and packed shards."""

import importlib.metadata  # noqa: F401  datatrove uses it without importing it
