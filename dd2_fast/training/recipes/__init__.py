"""Ready recipes: the handwritten digits, and toys whose answer is known exactly."""
