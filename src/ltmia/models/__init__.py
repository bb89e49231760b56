"""Models: where they are, loading, the pair, tokens, batches, forward passes."""
