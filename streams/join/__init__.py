"""Feedback to episode: the join that writes labels, its state on disk, and the ledger that accounts for every record."""
