"""What all tests share."""

from hypothesis import settings

# A busy machine must not fail a property: no limit on the time of one example.
settings.register_profile("cbtlab", deadline=None, print_blob=True)
settings.load_profile("cbtlab")
