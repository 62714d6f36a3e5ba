"""Sampling answers to learn from: the engines, and router replay."""
