"""Texts and a pair of models to scores, by way of a store."""
