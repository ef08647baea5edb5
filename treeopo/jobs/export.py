"""`treeopo export`: a run's adapter merged into its base, as one plain transformers model."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from treeopo.errors import RunError
from treeopo.run.card import model_card
from treeopo.run.directory import RunDirectory
from treeopo.run.models import resolve


def export_merged(run: RunDirectory, directory: Path) -> None:
    """Write the run's adapter (its newest checkpoint's, if it is not complete) merged into its base, with its card.

    Raises:
        RunError: the run has no adapter yet, or `directory` holds something or cannot be written.
        ModelError: the base cannot be loaded.
    """
    from treeopo.learner.export import save_merged_model

    trained = resolve(str(run.path))
    if trained.adapter is None:
        raise RunError(f"{run.path}: the run has taken no step yet; there is no adapter to merge")
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise RunError(f"{directory}: is there already; choose another directory for --merge")
        directory.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as beside:
            partial = Path(beside) / "model"
            save_merged_model(trained.base, trained.adapter, partial, run.config.engine.trust_remote_code)
            (partial / "README.md").write_text(model_card(run, trained.base, "transformers"), encoding="utf-8")
            os.replace(partial, directory)
    except OSError as error:
        raise RunError(f"{directory}: cannot be written ({error.strerror}); choose another --merge") from None
