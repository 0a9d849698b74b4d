"""Small helpers that every other package may use. They do not depend on recipes, models or runs."""
