"""Language models: loading a pair, tokens, one forward pass of both, fine-tuning, tiny bases."""
