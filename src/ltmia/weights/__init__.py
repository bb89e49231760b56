"""Which texts an update of weights is made of: target minus base as a sum of the candidates' gradients."""
