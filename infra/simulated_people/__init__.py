"""Simulated people: what they ask, what they like, and how they talk and vote. For `tidemill demo`, `tidemill simulate`, tests and benchmarks."""
