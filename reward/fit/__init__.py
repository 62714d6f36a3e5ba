"""Fitting the heads: labels in a replay buffer, the solver, and the model that comes out. Pure arithmetic."""
