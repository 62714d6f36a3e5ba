"""The ring on one machine: the embedded broker, each part as a process, and what supervises them."""
