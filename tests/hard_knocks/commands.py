"""Commands as a person gives them, in this process."""

from treeopo_cli.main import app
from treeopo_storage import StoreMeta
from treeopo_storage.errors import StoreError
from typer.testing import CliRunner

from treeopo.errors import TreeopoError

META = StoreMeta("0123456789abcdef", "teacher")


def invoke(*arguments: object) -> str:
    """The command's output, or what its one line says if it is refused."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is None:
        return result.output
    assert isinstance(result.exception, TreeopoError | StoreError), result.exception
    assert "\n" not in str(result.exception)
    return str(result.exception)
