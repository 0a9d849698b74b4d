"""Commands that inspect prepared corpora, and that find the documents an update of a run was trained on."""
