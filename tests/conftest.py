"""How hypothesis searches: as long as it takes. A slow machine is no failure; each test has pytest's time limit."""

from hypothesis import HealthCheck, settings

settings.register_profile("savepoint", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("savepoint")
