"""All tests. Hypothesis tells no failure from slowness, and finds the same on every run.

The profile "quick" tries a fifth of the examples: `make unit` runs with it.
"""

from hypothesis import settings

settings.register_profile("shop", deadline=None, derandomize=True)
settings.register_profile("quick", settings.get_profile("shop"), max_examples=20)
settings.load_profile("shop")
