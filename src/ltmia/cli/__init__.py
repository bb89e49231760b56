"""The commands; each imports heavy libraries only when it runs."""
