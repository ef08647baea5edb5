"""Looking into a tree store: its overview, one problem's tree, one prefix."""

from treeopo_storage import ProblemTree, StoreMeta, open_store
from treeopo_storage.places import Place
from treeopo_storage.streaming import problem_blocks

from treeopo.errors import InputError
from treeopo.search.report import TreeReport, report_trees


def overview(path: Place) -> tuple[StoreMeta, TreeReport]:
    """How a store was made, and what is committed in it."""
    store = open_store(path)
    blocks = problem_blocks(store.structure().first_node)
    return store.meta, report_trees(tree for start, stop in blocks for tree in store.problems(start, stop))


def find_problem(path: Place, name: str) -> ProblemTree:
    """The tree of a problem, by its number in the store or by its id.

    Raises:
        InputError: the store holds no such problem.
    """
    store = open_store(path)
    ids = store.problem_ids()
    if name in ids:
        return store.problem(ids.index(name))
    if name.isdecimal() and int(name) < len(ids):
        return store.problem(int(name))
    raise InputError(f"{path}: no problem {name!r}; give a number below {len(ids)} or an id such as {ids[:1]}")


def check_node(tree: ProblemTree, node: int) -> int:
    """`node`, if the tree has it.

    Raises:
        InputError: it does not.
    """
    if not 0 <= node < tree.node_count:
        raise InputError(f"problem {tree.id!r} has nodes 0 to {tree.node_count - 1}, not {node}")
    return node
