"""The numbers: neighbours, spanning trees, hierarchies and the selection of clusters."""
