"""Compiled inner loops on raw arrays: logits to statistics, and products that torch lacks."""
