"""The network: connections to one server or to a Cluster, their pool, and blocking reads of any size."""
