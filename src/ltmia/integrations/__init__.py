"""Connects audits with other tools: model cards, trackers, the Trainer, and a privacy annex."""
