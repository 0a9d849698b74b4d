"""A checkpoint that TensorFlow wrote, with the names and the layout of bert4keras."""
