"""`finetune rehearse`: everything that can be known of a request before a GPU is asked for.

request   every range, and what needs the volume: names, text, model, tokenizer
plan      contexts, memory, time and money against their limits
cluster   permissions, a dry run of every object, claim, Secrets, GPU classes
run       every step in small on this CPU, interrupted once and resumed: rehearse_small.py

Of a run on a cluster, a folder {home}/{pvc} is taken for a copy of the claim. Without one,
what can be seen from here is looked at: text by its URL, the hub's model. What is left out
is said, and is no problem: the flow's first task looks at the claim.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flows.cli.cluster_yaml import UNKNOWN_STORE, request_specs, service_objects
from flows.plan_request import ModelNotHereError, plan_request
from infra.backend import ContactError, PlaceError
from infra.kubernetes_backend.manifests_job import Object, objects
from infra.local.processes import LocalBackend
from tasks import configs
from tasks.following import follow_step
from tasks.specs import step_spec
from trainer.contract.cluster_settings import ClusterSettings
from trainer.contract.errors import RequestError, StepError
from trainer.contract.parameter_types import NO_GPU
from trainer.contract.parameters import Parameters, cluster_settings
from trainer.contract.topics import BudgetConfig
from trainer.contract.volume import is_url, path_on_volume
from trainer.planning.catalogue import load_gpus
from trainer.planning.plan import Plan

Say = Callable[[str], Any]
# So many contexts are enough for any step: what else is planned does not depend on the text.
MANY_CONTEXTS = 10**9


def problems_of(
    parameters: Parameters,
    home: Path,
    *,
    on_cluster: bool,
    say: Say,
    checks: Sequence[str] = ("request", "plan", "cluster"),
) -> list[str]:
    """Everything that would go wrong, as far as it can be asked without running anything.

    Args:
        checks: Which to make; the cluster is asked only `on_cluster`.
    """
    known = {"request": _request_problems, "plan": _plan_problems, "cluster": _cluster_problems}
    problems: list[str] = []
    for name in checks:
        if name == "cluster" and not on_cluster:
            continue
        try:
            found = known[name](parameters, home, on_cluster, say)
        except RequestError as error:
            found = list(error.problems)
        say(f"{name:<8} {'in order' if not found else f'{len(found)} to mend'}")
        problems += [problem for problem in found if problem not in problems]
    return problems


def _request_problems(parameters: Parameters, home: Path, on_cluster: bool, say: Say) -> list[str]:
    """What the fetch step would refuse; it touches nothing."""
    path_on_volume(home / parameters.pvc, "logs", parameters.logs)
    if on_cluster and not has_volume(parameters, home):
        say(f"         no folder {parameters.pvc} below --home: what is on the claim is left out")
        return []
    if on_cluster:
        say(f"         {home / parameters.pvc} is taken for a copy of the claim")
    values = parameters.model_dump()
    config = {**configs.fetch_config(values, parameters.request), "check_only": True}
    follow_step(LocalBackend(home, parameters.logs), step_spec(values, "fetch", config), [])
    return []


def _plan_problems(parameters: Parameters, home: Path, on_cluster: bool, say: Say) -> list[str]:
    if on_cluster and not has_volume(parameters, home):
        return _problems_without_volume(parameters, home, say)
    made = plan_request(parameters, home, num_contexts=None, on_cluster=on_cluster)
    return list(made.problems)


def _problems_without_volume(parameters: Parameters, home: Path, say: Say) -> list[str]:
    """Those of the plan, as far as text and model can be seen from here."""
    try:
        return _plan_from_here(parameters, home, say).problems
    except ModelNotHereError as error:
        say(f"         not planned here; the model may be on the claim: {error}")
        return []


def _plan_from_here(parameters: Parameters, home: Path, say: Say) -> Plan:
    if is_url(parameters.dataset):
        try:
            return plan_request(parameters, home, num_contexts=None, on_cluster=True)
        except RequestError:
            raise
        except StepError as error:  # the cluster's Secrets may open what is closed here
            say(f"         {error}")
    say("         the text is not counted: no limit of time or money is looked at")
    unlimited = parameters.model_copy(update={"budget": BudgetConfig()})
    return plan_request(unlimited, home, num_contexts=MANY_CONTEXTS, on_cluster=True)


def has_volume(parameters: Parameters, home: Path) -> bool:
    """Whether the run's volume, or a copy of it, is here."""
    return (home / parameters.pvc).is_dir()


def _cluster_problems(parameters: Parameters, home: Path, on_cluster: bool, say: Say) -> list[str]:
    # Loads the Kubernetes client, which a rehearsal without a cluster need not have.
    from infra.kubernetes_backend.preflight import Wanted, rehearse

    settings = cluster_settings(parameters)
    stays = parameters.run_inference or parameters.inference_only
    serves = stays and parameters.serving.gpus > 0
    kinds = ("kserve", "deployment") if stays else ()
    gpus = {"trainer_gpu": parameters.trainer_gpu}
    gpus |= {"inference_gpu": parameters.inference_gpu} if serves else {}
    gpus = {name: gpu for name, gpu in gpus.items() if gpu != NO_GPU}
    account = settings.service_account
    wanted = Wanted(
        objects=_jobs_of(parameters, settings, home),
        claims={"pvc": parameters.pvc},
        secrets={
            "cluster.secrets": settings.secrets,
            "cluster.image_pull_secrets": settings.image_pull_secrets,
            "wandb_key": [parameters.wandb_key] if parameters.wandb_key else [],
            "serving.api_key": [parameters.serving.api_key] if parameters.serving.api_key else [],
        },
        service_accounts={"cluster.service_account": account} if account else {},
        gpus=gpus,
        region=parameters.region,
        serves=stays,
        servers={kind: service_objects(parameters, settings, kind) for kind in kinds},
        serving_kind=parameters.serving.kind,
    )
    try:
        found = rehearse(wanted, settings)
    except (PlaceError, ContactError) as error:
        return [f"cluster can't be asked: {error}"]
    for note in found.notes:
        say(f"         {note}")
    known = load_gpus()
    return found.problems + [
        f"{name} is no class of the catalogue (got {gpu!r}). Known are {', '.join(known)}."
        for name, gpu in gpus.items()
        if gpu not in known
    ]


def _jobs_of(parameters: Parameters, settings: ClusterSettings, home: Path) -> list[Object]:
    """Everything that the run's steps are made of, those of plan and deploy too."""
    values, specs = parameters.model_dump(), []
    if not parameters.inference_only:
        planned = configs.fetch_config(values, parameters.request)
        specs.append(step_spec(values, "plan", planned))
        specs += request_specs(parameters, settings, home / parameters.pvc, UNKNOWN_STORE)
    if parameters.run_inference or parameters.inference_only:
        found = configs.deploy_config(values, run_name="", run=parameters.run_name)
        specs.append(step_spec(values, "deploy", found))
    return [made for spec in specs for made in objects(spec, settings)]
