"""`treeopo store`: look at, check, convert and merge tree stores."""

import json
from pathlib import Path
from typing import Annotated

import typer

from treeopo_cli.options import home_name, home_path, lasting

app = typer.Typer(no_args_is_help=True, help="Look at, check, convert and merge tree stores.")

StorePath = Annotated[str, typer.Argument(metavar="STORE", help="Path or URL of a tree store.")]
OutputStore = Annotated[str, typer.Option("--output", "-o", metavar="STORE", help="Path or URL of the new store.")]
TokenizerName = Annotated[
    str,
    typer.Option(parser=home_name, metavar="MODEL", help="Directory or hub name of the student's tokenizer."),
]
OwnTokenizer = Annotated[
    str | None,
    typer.Option(
        parser=home_name,
        metavar="MODEL",
        help="Compare the tokens of prefixes with those that this model's tokenizer gives for their texts.",
        show_default="the teacher's, if it is a directory here",
    ),
]


@app.command()
def info(
    store: StorePath,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    tokenizer: OwnTokenizer = None,
) -> None:
    """What a store holds, how it was made, and what its search found."""
    from treeopo_storage import open_store
    from treeopo_storage.summary import summarize

    from treeopo.inspect.tokens import look

    opened = open_store(store)
    looked = look(opened, tokenizer)
    summary = summarize(opened) | {"canonical_prefixes": None if looked is None else looked.share}
    if as_json:
        typer.echo(json.dumps(summary))
        return
    from treeopo.inspect.find import overview
    from treeopo_cli import render

    width = max(map(len, summary))
    summary["canonical_prefixes"] = "not looked at; give --tokenizer" if looked is None else str(looked)
    for name, value in summary.items():
        shown = value if isinstance(value, str) and value.isprintable() else json.dumps(value)
        typer.echo(f"{name.replace('_', ' '):{width}}  {shown}")
    render.store_report(store, overview(store)[1])


@app.command()
def verify(store: StorePath) -> None:
    """Read everything: every checksum and every rule of the format. Names the first bad array and row."""
    from treeopo_storage.verify import verify_store

    verified = verify_store(store)
    typer.echo(
        f"{store} is whole: {verified.problem_count} problems, {verified.node_count} prefixes, "
        f"{verified.token_count} tokens"
    )


@app.command()
def export(
    store: StorePath,
    output: Annotated[Path, typer.Argument(parser=home_path, metavar="FILE", help="A new .jsonl or .parquet file.")],
) -> None:
    """One row per prefix: prompt, prefix steps, completion, value, visits, reward."""
    from treeopo_storage import open_store
    from treeopo_storage.interchange import export_jsonl, export_parquet

    writers = {".jsonl": export_jsonl, ".parquet": export_parquet}
    if output.suffix not in writers:
        raise typer.BadParameter(f"{output} must end in .jsonl or .parquet", param_hint="OUTPUT")
    rows = writers[output.suffix](open_store(store), output)
    typer.echo(f"{rows} rows written to {output}")


@app.command(name="import")
def import_(
    traces: Annotated[
        list[str],
        typer.Argument(
            metavar="TRACES...",
            help="Files, directories or patterns. A row has question, answer, steps, reward[, id, prompt].",
        ),
    ],
    output: OutputStore,
    tokenizer: TokenizerName,
    separator: Annotated[str, typer.Option(help="Ends every step but the last; \\n stands for a new line.")] = "\\n\\n",
    layout: Annotated[
        str,
        typer.Option("--format", metavar="NAME", help="traces, or another project's: see docs/store.md."),
    ] = "traces",
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="recorded|graded", help="The rewards in the file, or a grader's; the format has a default."
        ),
    ] = None,
    grader: Annotated[
        str | None,
        typer.Option(metavar="GRADER", help="Grades the traces (number, if none is named), and what training samples."),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option(
            parser=home_path, metavar="FILE", help="A text that names {question} once: the prompt of rows without one."
        ),
    ] = None,
) -> None:
    """Build a store from finished solutions made elsewhere, in treeopo's layout or another project's."""
    from treeopo_storage import IMPORTED, StoreMeta, new_store
    from treeopo_storage.interchange import trees_from_traces
    from treeopo_storage.joint import changed_prefixes

    from treeopo.engines.tokenizer import ModelTokenizer
    from treeopo.jobs.import_traces import import_traces

    words = ModelTokenizer(tokenizer)
    ends = separator.replace("\\n", "\n")
    found = import_traces(traces, ends, layout, reward, grader, template)
    trees = trees_from_traces(found.traces, ends, words, end_of_text=words.end_after)
    meta = StoreMeta(
        words.fingerprint,
        teacher=IMPORTED,
        search={"traces": ", ".join(Path(name).name for name in traces), **found.settings},
        separator=ends,
        vocabulary_size=words.vocabulary_size,
    )
    lasting(output)
    with new_store(output, meta) as writer:
        writer.append(trees)
    changed = sum(changed_prefixes(tree, words) for tree in trees)
    told = f"; {changed} prefixes do not decode to their text" if changed else ""
    typer.echo(f"{len(trees)} problems imported into {output}{told}")
    if found.left_out:
        typer.echo(f"left out: {found.left_out}")


@app.command()
def merge(
    stores: Annotated[list[str], typer.Argument(metavar="STORE...", help="Stores made under the same settings.")],
    output: OutputStore,
) -> None:
    """Put the problems of several stores into a new one."""
    from treeopo_storage import new_store, open_store
    from treeopo_storage.interchange import copy_problems, merged_meta

    sources = [open_store(store) for store in stores]
    lasting(output)
    with new_store(output, merged_meta(sources)) as writer:
        problems = copy_problems(sources, writer)
    typer.echo(f"{problems} problems merged into {output}")


@app.command()
def retokenize(store: StorePath, output: OutputStore, tokenizer: TokenizerName) -> None:
    """Make a store for a student with another tokenizer: every solution encoded anew."""
    from treeopo_storage import new_store, open_store
    from treeopo_storage.retokenize import retokenized_meta

    from treeopo.engines.tokenizer import ModelTokenizer
    from treeopo.inspect.tokens import retokenized

    words, source = ModelTokenizer(tokenizer), open_store(store)
    lasting(output)
    with new_store(output, retokenized_meta(source.meta, words.fingerprint, words.vocabulary_size)) as writer:
        for told in retokenized(source, writer, words):
            typer.echo(f"{output}: {told}")
