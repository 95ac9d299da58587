"""How a service's newest revision is at one moment, as seen in the cluster's objects."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """One look at a revision."""

    url: str = ""  # of the revision alone, once it is ready
    why: str = ""  # it is not
    hopeless: bool = False
    revision: str = ""  # Knative's name of it, once there is one
