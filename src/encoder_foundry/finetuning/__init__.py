"""Fine-tuning of any Hugging Face encoder directory, an export of ours among them."""
