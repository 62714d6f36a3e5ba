"""The lake: every record of every topic as Parquet, written exactly once, and replay from it."""
