"""The ground: the pipeline's language (events, topics, metrics) and its log."""
