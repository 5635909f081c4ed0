"""kopf handlers, which pass watched objects on to the reconciler and decide nothing.

The only package that imports kopf.
"""
