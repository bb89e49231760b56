"""Canaries: texts sampled from an LM and mixed into a training file, to measure afterwards what it learned of them."""
