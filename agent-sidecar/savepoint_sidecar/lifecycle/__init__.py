"""One incarnation of an agent, from its first connect to the release of its epoch.

It decides what happens when. ``checkpoint``, ``restore`` and ``agent_api`` do the work.
"""
