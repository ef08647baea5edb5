"""The command line of treeopo."""
