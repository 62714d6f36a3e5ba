"""What operators do with a running ring: status, doctor, erasures, pruning, history of promotions."""
