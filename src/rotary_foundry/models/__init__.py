"""Model families, the layers that they share, and the ComposerModel that trains them."""
