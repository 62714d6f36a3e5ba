"""How good a version is: calibration, slices, why a score is what it is, and versions made again from the lake."""
