"""One workload a file: ``build(tasks) -> (network, TaskBatch, loss, inner rate)``."""

NAMES = ("sinusoid", "wide_mlp", "omniglot_5w1s", "omniglot_20w1s", "mini_imagenet", "anil_head")
