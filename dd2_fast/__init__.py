"""dd2_fast: one-step image autoregressive models by Distilled Decoding 2, fast."""

__version__ = "0.1.0"
