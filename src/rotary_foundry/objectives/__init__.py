"""Training objectives: how a row becomes inputs and labels, and the loss of a network on them."""
