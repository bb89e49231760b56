"""Every baseline as one function of per-token statistics; a higher score is more member-like."""
