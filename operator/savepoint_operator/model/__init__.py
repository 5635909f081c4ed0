"""The operator's values and ports: cluster objects, observations, and the Protocols between its packages.

Frozen dataclasses and Protocols only; no I/O and no decisions.
"""
