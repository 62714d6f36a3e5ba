"""The base with its LoRA adapter, and the arithmetic of attention, experts and head that trains it."""
