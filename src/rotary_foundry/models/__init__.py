"""ModernBERT on unpadded tokens, and the ComposerModel that trains it."""
