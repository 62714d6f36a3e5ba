"""What operators see, built from the metric table."""
