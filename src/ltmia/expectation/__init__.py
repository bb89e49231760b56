"""How much a target changes the log-probability of tokens in general, learned without labels."""
