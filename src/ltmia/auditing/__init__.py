"""Audits, scores for claimants, and the checks of both."""
