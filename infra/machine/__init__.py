"""Measures this machine in a few seconds, chooses precision, threads and layout, and predicts how long a step takes."""
