"""The file system under an agent's state roots: what a root is, what it contains, and what the policy excludes.

The package lists and removes entries; it does not read, store or restore file content (``capture`` and ``restore`` do).
"""
