"""Benchmarks: figures and their goals. `make bench` runs all of them; each module also runs alone. None is a test."""
