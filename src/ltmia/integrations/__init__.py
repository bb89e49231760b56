"""Where the evidence of an audit is kept: model cards and trackers."""
