"""Attack on the weights: explains the update (target minus base) as a weighted sum of the texts' gradients."""
