"""Prepare conversations for instruction tuning: their forms, chat templates, and the tokens that count in the loss."""
