"""What can be drawn out of a model: how likely it writes the rest of a text, given its beginning."""
