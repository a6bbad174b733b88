"""Engines that go step by step through the inner loop: one task after another, all at once, in parts, recorded."""
