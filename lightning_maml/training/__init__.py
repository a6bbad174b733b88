"""Meta-training, validation and test under a ``Trainer``."""
