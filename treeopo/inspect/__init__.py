"""Looking into what treeopo keeps: tree stores so far."""
