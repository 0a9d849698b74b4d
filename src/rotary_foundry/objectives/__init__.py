"""Training objectives: what a row becomes, and what a network is to predict of it."""
