"""One step of learning, what lives in a learner's process, and its checkpoints."""
