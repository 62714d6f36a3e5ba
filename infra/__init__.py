"""The roof: putting the ring together and running it."""
