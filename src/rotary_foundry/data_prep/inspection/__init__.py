"""Looking into prepared corpora, and from a run back to the documents it saw."""
