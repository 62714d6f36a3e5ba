"""Adapters on a replica: choose them from the log, load, attest and route them, and serve LoRA on a CPU."""
