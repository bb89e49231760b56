"""The data factory: pretrain, fine-tune and extract over a grid of combinations."""
