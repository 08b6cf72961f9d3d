"""Stages, loop and saved state of the DD2 recipe, and ready recipes over them."""
