"""What a target does to tokens at large, learned without labels."""
