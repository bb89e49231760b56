"""Texts in: reading, de-duplication, splits by document, the embedded demo texts."""
