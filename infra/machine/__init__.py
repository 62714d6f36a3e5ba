"""What this machine is good at: a probe of a few seconds, the choices that follow from it, and how long a step will take."""
