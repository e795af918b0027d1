"""Queues that are divided into shards: which shard a message belongs to, and which process reads which shard."""
