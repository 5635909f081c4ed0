"""Capture of an agent's file trees: reading files that changed since the last checkpoint and storing them.

The package does not know when to capture, how the agent is paused, or what is committed (``checkpoint`` does).
"""
