"""Keys for steps: found by the name that a parameter holds, and handed over unseen.

No key is ever a parameter, part of a config or written to a file.
"""

import os

from trainer.contract.errors import RequestError

VARIABLE = "WANDB_API_KEY"  # what Weights & Biases' own client reads


def tracking_key(name: str) -> dict[str, str]:
    """Weights & Biases' key as an environment variable for a step of this machine.

    Args:
        name: The parameter `wandb_key`: an environment variable, or a Prefect Secret block.
    Raises:
        RequestError: There is neither of that name.
    """
    return {VARIABLE: os.environ.get(name) or _of_block(name)}


def _of_block(name: str) -> str:
    from prefect.blocks.system import Secret

    try:
        return str(Secret.load(name).get())  # type: ignore[union-attr]
    except ValueError as error:
        raise RequestError(
            f"wandb_key names nothing that holds a key (got {name!r}). It is an environment "
            "variable or a Prefect Secret block. Set the one or make the other: "
            f"export {name}=..."
        ) from error
