"""Logits to per-token statistics, statistics to feature columns, and the store that keeps them."""
