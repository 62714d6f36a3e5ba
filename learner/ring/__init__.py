"""The learner in the ring: reading the log, the learning loop, and publishing adapters."""
