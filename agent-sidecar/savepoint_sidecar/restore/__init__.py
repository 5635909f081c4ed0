"""Restore of an agent's file trees: into roots before the agent starts, and in place after it crashed.

The package does not decide which checkpoint to restore or who may restore it (``restore_container`` and ``lifecycle``
learn that from the operator), and it does not restore an SDK's values (``stage.components`` does).
"""
