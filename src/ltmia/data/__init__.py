"""Reads texts, finds repeats, splits by document, and holds the embedded demo texts."""
