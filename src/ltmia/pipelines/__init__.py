"""Where the parts meet: extraction, audit, score, demo, lab, train, evaluate."""
