"""Settings of hypothesis: an example may take any time, since every test has pytest's time limit."""

from hypothesis import HealthCheck, settings

settings.register_profile("savepoint", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("savepoint")
