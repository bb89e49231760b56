"""Computes per-token statistics from logits, and feature columns from statistics; stores both."""
