"""Fine-tuning and pretraining of language models."""
