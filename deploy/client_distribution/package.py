"""The thin client of sploot-cluster. It enqueues jobs from any Python service and needs only Dramatiq and redis-py.

This file becomes ``__init__.py`` of the package ``sploot_cluster_client``.
"""

from sploot_cluster.errors import InvalidInput
from sploot_cluster.event import EmbeddingIngested
from sploot_cluster.jobs import JobRef, JobStatus, QueueFull, QueueUnavailable
from tasks.client import ClusterTasks

__all__ = ["ClusterTasks", "EmbeddingIngested", "InvalidInput", "JobRef", "JobStatus", "QueueFull", "QueueUnavailable"]
