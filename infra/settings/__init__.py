"""The settings of the whole ring, and the shipped configurations."""
