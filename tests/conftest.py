"""What all tests share."""

import os

from hypothesis import settings

# Continuous integration draws the same examples every time, so that what fails there fails again; elsewhere new ones are tried.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
