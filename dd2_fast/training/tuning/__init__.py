"""Search for settings by short trainings: ``dd2-fast tune``."""
