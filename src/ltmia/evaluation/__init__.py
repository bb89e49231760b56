"""Scores to metrics with intervals, decisions, validity checks and the results file."""
