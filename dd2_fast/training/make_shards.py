"""Another path of :mod:`dd2_fast.training.samples.make_shards`."""

from .samples.make_shards import make_shards

__all__ = ["make_shards"]
