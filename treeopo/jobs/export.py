"""`treeopo export`: a run's adapter, or any other, merged into its base, as one plain transformers model."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from treeopo.errors import RunError
from treeopo.run.adapter_files import CONFIG
from treeopo.run.card import merged_card, model_card
from treeopo.run.directory import RunDirectory
from treeopo.run.models import resolve


def export_merged(source: Path, directory: Path, base: str | None = None, trust_remote_code: bool = False) -> None:
    """Write an adapter merged into its base, with a card. `source` is a run (its adapter, or its newest checkpoint's if
    it is not complete; code of the base is run as it was in the run) or the directory of an adapter.

    base: in place of the one that the adapter names.

    Raises:
        RunError: there is neither, the run has no adapter yet, or `directory` holds something or cannot be written.
        ModelError: the base cannot be loaded, or the adapter is not of it or cannot be merged.
    """
    from treeopo.learner.export import save_merged_model

    run = None if (source / CONFIG).is_file() else RunDirectory.open(source)
    trained = resolve(str(source), base)
    if trained.adapter is None:
        raise RunError(f"{source}: the run has taken no step yet; there is no adapter to merge")
    trusted = trust_remote_code or (run is not None and run.config.engine.trust_remote_code)
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise RunError(f"{directory}: is there already; choose another directory for --merge")
        directory.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as beside:
            partial = Path(beside) / "model"
            save_merged_model(trained.base, trained.adapter, trained.tokenizer, partial, trusted)
            name = trained.base_name
            card = model_card(run, name, "transformers") if run else merged_card(name, source)
            (partial / "README.md").write_text(card, encoding="utf-8")
            os.replace(partial, directory)
    except OSError as error:
        raise RunError(f"{directory}: cannot be written ({error.strerror or error}); choose another --merge") from None
