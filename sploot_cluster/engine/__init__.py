"""The numerical engine: nearest neighbours, spanning trees, hierarchies and the selection of clusters."""
