"""Deploy on a cluster: a Job finds the model, its server is tried, a Job holds it to the gate.

What needs the volume and the server's address in the cluster is done by Jobs of the deploy
step, so the process that runs this needs neither. What serves continues until
the new one has passed.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from infra.backend import ContactError, Line, PlaceError
from infra.serving_place import API_KEY_VARIABLE, ServingError, ServingPlace, ServingSpec
from tasks import configs
from trainer.contract.errors import Interrupted, RequestError, StepError
from trainer.contract.image_reference import image_of
from trainer.contract.outcome import Outcome
from trainer.contract.parameter_types import NO_GPU
from trainer.serving.deploy.choose_engine import engine_for

Check = Callable[[dict[str, Any]], Outcome]


def deploy_on_cluster(
    parameters: Mapping[str, Any],
    place: ServingPlace,
    check: Check,
    say: Line,
    *,
    digests: Mapping[str, str] = MappingProxyType({}),
    rollback: bool = False,
) -> Outcome:
    """Have the run's model served, or the one that served before.

    Args:
        parameters: The flow's.
        place: Where services are kept.
        check: Runs a deploy step with that config.
        say: Told what is waited for.
        digests: Of the model and its evaluation, as this run of the flow made them.
        rollback: Put the model back that served before.
    Returns:
        How the check ended; its result has the service's `url`.
    Raises:
        RequestError: There is no model to serve.
        StepError: The new revision did not pass; what served before serves on.
    """
    about = {"run": parameters["run_name"], "rollback": rollback}
    asked = configs.deploy_config(parameters, run_name="", digests=digests, **about)
    found = check(asked).result
    if rollback:
        again = {name: found[name] for name in ("model", "revision")}
        spec = ServingSpec(**{**found["earlier"], **again})
    else:
        spec = serving_spec(parameters, found)
    try:
        before = _before(place, spec, found["serving"])
        if before is not None and before.serves_as(spec):
            url = place.promote(before, say)
            message = f"revision {before.revision} serves already at {url}"
            result = {**found, "url": url}
            return Outcome(
                step="deploy", status="done", reused=True, message=message, result=result
            )
        try:
            candidate = place.start(spec, before, say)
            say(f"revision {spec.revision} is ready to be checked at {candidate}")
            config = configs.deploy_config(
                parameters,
                **about,
                digests={**digests, **found["digests"]},
                url=candidate,
                serving_loss=None if before is None or rollback else before.figures.get("loss"),
                max_regression=parameters["serving"]["max_regression"],
                serving=dataclasses.asdict(spec),
                api_key_variable=API_KEY_VARIABLE if spec.api_key else "",
            )
            outcome = check(config)
        except Interrupted:  # the same request resumes from here
            raise
        except (ServingError, StepError) as error:
            place.withdraw(spec, before, say)
            raise StepError(_refused(parameters, error, before)) from error
        url = place.promote(spec, say)
        return dataclasses.replace(outcome, result={**outcome.result, "url": url})
    except (PlaceError, ContactError, ServingError) as error:
        raise StepError(f"the deploy step of {spec.run_name!r} failed: {error}") from error


def adapters_refused(names: Sequence[str]) -> str:
    """Why a service of a cluster has no adapters: its pods mount the folder of one model."""
    return (
        f"serving.adapters can't be served on Kubernetes (got {', '.join(names)}): a server there "
        "mounts one model. Serve each run by itself, or all of them with --backend local."
    )


def serving_spec(parameters: Mapping[str, Any], found: Mapping[str, Any]) -> ServingSpec:
    """The revision to be made of the model that the deploy step found."""
    serving = parameters["serving"]
    if serving["adapters"]:
        raise RequestError(adapters_refused(serving["adapters"]))
    names = "cores max_cores memory_gib max_memory_gib min_replicas max_replicas retention_minutes"
    gpus = 0 if parameters["inference_gpu"] == NO_GPU else serving["gpus"]
    return ServingSpec(
        run_name=parameters["run_name"],
        volume=parameters["pvc"],
        model=found["model"],
        model_digest=found["model_digest"],
        revision=found["revision"],
        image=serving["image"]
        or image_of(parameters["finetuner_image"], parameters["finetuner_tag"]),
        config={
            "trust_remote_code": parameters["trust_remote_code"],
            "engine": engine_for(
                serving["engine"], found.get("builtin_wrong", ""), parameters["run_name"]
            ),
            "engine_args": serving["engine_args"],
            "tensorizer_uri": serving["tensorizer_uri"],
            **({"cors_origins": serving["cors_origins"]} if serving["cors_origins"] else {}),
        },
        api_key=serving["api_key"],
        figures={} if found["loss"] is None else {"loss": found["loss"]},
        region=parameters["region"],
        gpu=parameters["inference_gpu"] if gpus else "",
        gpus=gpus,
        ready_seconds=60 * serving["ready_minutes"],
        **{name: serving[name] for name in names.split()},
    )


def _before(
    place: ServingPlace, spec: ServingSpec, recorded: Mapping[str, Any]
) -> ServingSpec | None:
    """The revision that passed last, where its service is still there."""
    if not recorded or place.serving(spec) is None:
        return None
    return ServingSpec(**recorded)


def _refused(parameters: Mapping[str, Any], error: Exception, before: ServingSpec | None) -> str:
    reasons = error.problems if isinstance(error, RequestError) else (str(error),)
    after = f"Revision {before.revision} serves on." if before else "Nothing is served."
    head = f"the deploy step of {parameters['run_name']!r} failed, its server was removed:"
    return "\n".join([head, *(f"    {reason}" for reason in reasons), after])
