"""Level-triggered reconcile of stores, policies, agents and rollbacks.

Watches and the control side only add keys to the work queue; ``reconciler`` takes a key and calls the ``reconcile`` of
its kind, which looks at the present state and never at the event. ``recorder`` keeps what the control side reports in
``agent_record``; ``status_writer`` is the only module that writes status. This package opens no connection of its own
(``cluster``, ``savepoint.storage``) and grants no epoch (``lineage``, ``control``).
"""
