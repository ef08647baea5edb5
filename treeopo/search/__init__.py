"""The teacher's Monte Carlo tree search: of one problem, of many at once, and what came out."""

from treeopo.search.build import BuildProgress, build_trees
from treeopo.search.problem import search_problem
from treeopo.search.report import TreeReport, report_trees
from treeopo.search.settings import SearchSettings

__all__ = ["BuildProgress", "SearchSettings", "TreeReport", "build_trees", "report_trees", "search_problem"]
