"""What stages learn from: a teacher's samples, drawn, pooled or in shards, and the digits."""
