"""How much each vote counts, and signs that the policy pleases the model and not people: caps, voters, guards, drift."""
