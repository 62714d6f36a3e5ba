"""How long to look: a moment in everyday tests, as long as it is given by ``make fuzz``."""

import os

from hypothesis import HealthCheck, settings

FAST = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large, HealthCheck.filter_too_much)
settings.register_profile("everyday", max_examples=25, deadline=None, derandomize=True, suppress_health_check=FAST)
settings.register_profile("long", max_examples=500, deadline=None, suppress_health_check=FAST)
settings.load_profile(os.environ.get("FUZZ_PROFILE", "everyday"))
