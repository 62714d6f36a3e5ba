"""The learner's place in the ring: what it follows on the log, its loop, and publishing adapters."""
