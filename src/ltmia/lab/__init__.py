"""The lab: pretrains, fine-tunes and extracts over a grid of combinations."""
