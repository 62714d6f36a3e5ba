"""One tree of settings for the whole ring, and the shipped configurations."""
