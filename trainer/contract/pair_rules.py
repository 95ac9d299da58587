"""What goes with pairs of answers (data.shape=preference), and what does not."""

from trainer.contract.addresses import masked
from trainer.contract.topics import DataConfig, LoraConfig, PreferenceConfig


def pair_problem(
    data: DataConfig,
    preference: PreferenceConfig,
    lora: LoraConfig | None,
    tensorizer_uri: str,
) -> str:
    """What stands in the way, with the way out; empty: nothing."""
    if not data.is_of_pairs:
        if preference == PreferenceConfig():
            return ""
        return (
            f"preference has no effect without data.shape='preference' (got beta="
            f"{preference.beta:g}). Leave it out, or name that shape."
        )
    if tensorizer_uri:
        return (
            "tensorizer_uri can't be combined with data.shape='preference' (got "
            f"{masked(tensorizer_uri)!r}): what the base model makes of the pairs is kept by the "
            "content of its folder. Leave it out."
        )
    if lora is not None and lora.base_bits == 4:
        return (
            "lora.base_bits=4 can't be combined with data.shape='preference': evaluation compares "
            "with the base model as it is stored. Take base_bits=16."
        )
    if lora is not None and lora.dropout:
        return (
            f"lora.dropout can't be combined with data.shape='preference' (got {lora.dropout:g}): "
            "dropout would change the rewards from step to step. Leave it out."
        )
    return ""
