"""Where the evidence of an audit is kept: model cards, trackers, the privacy annex."""
