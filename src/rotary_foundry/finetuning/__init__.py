"""Fine-tuning: a classifier on any encoder, searched over a grid and several seeds; and retrievers, dense and late."""
