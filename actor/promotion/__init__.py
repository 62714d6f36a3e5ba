"""Who moves to production, and on what evidence: gates, shadow, canary, hold-back, nights, rollback."""
