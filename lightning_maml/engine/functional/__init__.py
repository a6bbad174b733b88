"""A network called with the parameters of many tasks at once."""
