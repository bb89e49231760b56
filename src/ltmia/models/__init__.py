"""Finds and loads models, makes the pair, and runs it: tokens, batches, forward passes."""
