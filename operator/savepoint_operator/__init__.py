"""The operator and the admission webhook: two processes, ``main`` and ``webhook``, of one image.

``model`` holds values and ports, ``rules`` decides, ``cluster`` speaks to the API server, ``lineage`` to the stores,
``control`` to the pods; ``reconcile`` brings the cluster's objects in line, and ``admission`` injects pods.
"""
