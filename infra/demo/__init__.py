"""``tidemill demo``: simulated people, one turn of the ring, and the report."""
