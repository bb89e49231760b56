"""The commands; heavy imports stay inside them."""
