"""Data sets that the benchmark of tasks trains on."""
