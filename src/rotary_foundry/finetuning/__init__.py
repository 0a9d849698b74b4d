"""Fine-tune a classifier on any encoder, searched over a grid and several seeds."""
