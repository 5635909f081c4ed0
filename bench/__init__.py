"""Figures beside their goals. `make bench` runs all of them; each module runs alone too. Nothing here is a test."""
