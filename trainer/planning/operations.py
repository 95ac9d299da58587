"""How many floating-point operations a model needs for a step, and what a device could do.

"Model FLOPs": what the mathematics needs. Layers that are computed again to save memory
do not count, so the share of the device's peak says how well the time was used.
"""

from collections.abc import Iterable

from trainer.planning.model_shape import ModelShape

# Dense matrix products in bf16 or fp16, summed in fp32, in TFLOP/s; what stands first wins.
# Source: NVIDIA's data sheets; the names are those that CUDA gives the devices.
PEAK_TFLOPS = {
    "RTX A4000": 76.7,
    "RTX A5000": 111.1,
    "RTX A6000": 154.8,
    "A40": 149.7,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H200": 989.0,
    "B200": 2250.0,
    "V100-PCIE": 112.0,
    "V100": 125.0,
    "Quadro RTX 5000": 89.2,
    "Quadro RTX 4000": 57.0,
}


def step_flops(shape: ModelShape, lengths: Iterable[int], *, frozen: bool = False) -> float:
    """Operations of a training step over contexts of the given numbers of tokens.

    Two for each weight and token forward and four backward; two products of T x T in
    each layer's attention, three times as well, the masked half with them.

    Args:
        shape: The model.
        lengths: Tokens of each context.
        frozen: The weights get no gradients (LoRA): two of the four are saved.
    Source: PaLM, appendix B (arXiv 2204.02311).
    """
    tokens = [float(length) for length in lengths]
    weights = shape.layers * shape.layer_parameters + shape.embedding_parameters
    attention = shape.layers * shape.heads * shape.head_size
    linear = (4 if frozen else 6) * weights * sum(tokens)
    return linear + 12 * attention * sum(length**2 for length in tokens)


def peak_flops(device_name: str) -> float | None:
    """What the device of that name could do in a second; None where it is not known."""
    found = (peak for name, peak in PEAK_TFLOPS.items() if name in device_name)
    tflops = next(found, None)
    return None if tflops is None else tflops * 1e12
