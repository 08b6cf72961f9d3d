"""Another path of :mod:`dd2_fast.training.samples.shards`."""

from .samples.shards import (
    FORMAT,
    MANIFEST,
    Manifest,
    ShardedPairs,
    ShardedSamples,
    ShardEntry,
    read_manifest,
    sha256_of_file,
    sha256_of_weights,
    shard_count,
    shard_name,
    shard_ranges,
    token_dtype,
)

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Manifest",
    "ShardEntry",
    "ShardedPairs",
    "ShardedSamples",
    "read_manifest",
    "sha256_of_file",
    "sha256_of_weights",
    "shard_count",
    "shard_name",
    "shard_ranges",
    "token_dtype",
]
