"""What holds for every test."""

from hypothesis import HealthCheck, settings

# The same examples each time, and no stopwatch: a busy machine must not fail a test.
settings.register_profile(
    "steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")
