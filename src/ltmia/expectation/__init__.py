"""Learns without labels how much a target changes the log-probability of tokens in general."""
