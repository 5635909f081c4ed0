"""Grants, commits, rollbacks and collection on each agent's commit chain, over ``savepoint.repository``.

``service`` offers them to ``control``, one operation per agent at a time; ``open_repository`` makes the blocking calls.
"""
