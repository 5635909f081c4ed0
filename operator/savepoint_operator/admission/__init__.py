"""The webhook process around ``rules.admission``: its index of policies and namespaces, its certificate, its server.

It decides nothing about pods, holds no secret but its own serving key, and never writes to the cluster.
"""
