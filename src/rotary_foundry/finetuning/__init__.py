"""Fine-tuning: classifiers on any encoder, by a search over a grid and several seeds; and dense and late retrievers."""
