"""From an answer to numbers: the frozen backbone, its features, and tuning it."""
