"""All tests. Hypothesis tells no failure from slowness, and finds the same on every run."""

from hypothesis import settings

settings.register_profile("shop", deadline=None, derandomize=True)
settings.load_profile("shop")
