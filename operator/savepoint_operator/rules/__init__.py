"""The operator's decisions as pure functions: values in, values out; time and randomness are arguments.

``admission`` shapes pods, ``status`` writes status patches; the modules here decide everything else.
"""
