"""Commands of the `finetune` command line around runs: what the owner of a pipeline does."""

from pathlib import Path

import click


@click.command("import-argo")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def import_argo(file: Path) -> None:
    """Print the request of an Argo parameter file or Workflow as parameters for --params.

    \b
    FILE is what `argo submit --parameter-file` took, or `argo get NAME -o yaml` printed:
        finetune import-argo FILE > request.yaml && finetune run --params request.yaml
    """
    from flows.import_argo import import_argo as read_argo

    click.echo(read_argo(file.read_text(encoding="utf-8"), file.name).to_yaml(), nl=False)


COMMANDS = [import_argo]
