"""A server of log-probabilities: what is asked, how, and the self-test that it must pass before it is trusted."""
