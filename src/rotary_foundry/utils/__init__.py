"""Small helpers that every other package may use; none of them knows recipes, models or runs."""
