"""Queues that are divided into shards: to which shard a message belongs, and which process reads which shard."""
