"""ModernBERT (arXiv 2412.13663): its shape, network, first weights and Hugging Face form."""
