"""The learned attack: networks, training, and the classifier that is shipped."""
