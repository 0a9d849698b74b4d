"""What a model can do: suites of measurements over any masked language model, ours or another's."""
