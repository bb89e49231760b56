"""Where fine-tuning happens and where its evidence is kept: model cards, trackers, the Trainer, the annex."""
