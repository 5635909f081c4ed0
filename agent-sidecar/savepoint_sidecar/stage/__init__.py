"""The sidecar's side of the stage: storing the values that an SDK flushed, and restoring them for the next process.

The package knows the stage's files and the components in a checkpoint. It does not know when to checkpoint or restore,
what the values mean, or the agent's file trees (``capture`` and ``restore``). Where each file lies is defined by
``savepoint.contract.stage_layout``.
"""
