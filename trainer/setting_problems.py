"""Settings of training that clash, or that this kind of machine has nothing for.

Pure, and light: the planner refuses them before anything starts, the finetune step where it runs.
"""

from collections.abc import Iterator


def setting_problems(
    *,
    on_gpu: bool,
    force_fp16: bool,
    precision: str,
    adam_bits: int,
    offload: str,
    liger: bool,
    compile: bool,
    zero_stage: int,
    processes: int,
) -> Iterator[str]:
    """What stands in the way, a sentence each, with the way out."""
    if (force_fp16 or precision == "fp16") and not on_gpu:
        name = "force_fp16" if force_fp16 else "precision"
        mend = "Leave it out" if force_fp16 else "Take bf16 or fp32"
        yield (
            f"{name} asks for fp16, which DeepSpeed trains on a GPU alone (got no GPU). "
            f"{mend} here."
        )
    if adam_bits == 8 and offload == "always":
        yield (
            "optimizer.adam_bits is of an Adam that can't be in host memory (got 8, with offload "
            "'always'). Take adam_bits=32, or leave offload out."
        )
    if liger and not on_gpu:
        yield (
            "kernels.liger is made of GPU code (got no GPU). Leave it out here, or try "
            "kernels.compile."
        )
    if compile and zero_stage == 3 and processes > 1:
        yield (
            "kernels.compile can't compile layers whose weights are spread (got zero_stage 3 over "
            f"{processes} processes). Take zero_stage 2, or leave it out."
        )
