"""A model that judges answers by a rubric, as one more channel of feedback."""
