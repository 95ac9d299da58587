"""Commands of the `finetune` command line around runs: what the owner of a pipeline does."""

from pathlib import Path

import click

from flows.options import home_option, pvc_option


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


@click.command()
@click.argument("run")
@click.option("--as", "name", help="Name of the run here.  [default: RUN]")
@home_option
@pvc_option
def adopt(run: str, name: str | None, home: Path, pvc: str) -> None:
    """Make a run of what the reference's workflow left finished, so that it can be served.

    \b
    RUN is a name below finetunes/results-..., as `finetune runs` lists it:
        finetune adopt RUN && finetune run -p run_name=RUN -p inference_only=true
    """
    from flows import reference_claim
    from flows.parameters import Parameters
    from trainer.config import load_parameters

    named = load_parameters(Parameters, {"run_name": name or run, "pvc": pvc}).run_name
    reference_claim.adopt(home / pvc, run, named)


COMMANDS = [import_argo, adopt]
