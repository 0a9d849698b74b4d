"""Turn corpora into a tokenizer and packed shards."""
