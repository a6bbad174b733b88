"""The configurations: a package, so that they install and `lightning-maml reproduce` finds them."""
