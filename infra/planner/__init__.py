"""What fits where: a base's shape, the arithmetic of memory, and what a machine has."""
