"""Scores texts with a pair of models, through a store."""
