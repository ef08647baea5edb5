"""Trees as arrays: parents before children, `NO_PARENT` at a root. Pure: numpy and numba only.

topology.py     what makes `parent` a tree
statistics.py   success and total of every subtree in one reverse pass
history.py      counts kept over a whole run, with exponential forgetting
success.py      the success from every node, estimated from such counts
"""

from treeopo.tree.history import RunningCounts
from treeopo.tree.statistics import SubtreeStatistics, subtree_statistics
from treeopo.tree.success import estimated_success
from treeopo.tree.topology import NO_PARENT, check_parents

__all__ = [
    "NO_PARENT",
    "RunningCounts",
    "SubtreeStatistics",
    "check_parents",
    "estimated_success",
    "subtree_statistics",
]
