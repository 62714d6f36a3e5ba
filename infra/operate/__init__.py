"""What operators ask of a running ring: status, doctor, erasures, pruning, history."""
