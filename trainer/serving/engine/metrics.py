"""What `/metrics` tells: the engine's figures, and the seconds of requests under KServe's names."""

from collections.abc import Iterator

from prometheus_client import REGISTRY, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from trainer.serving.engine.engine import Engine
from trainer.serving.engine.vllm import VllmEngine

PREPROCESS_SECONDS = Histogram(
    "request_preprocess_seconds", "Seconds to read a request", ["model_name"]
)
PREDICT_SECONDS = Histogram(
    "request_predict_seconds", "Seconds to answer a request, or to its first token", ["model_name"]
)


class EngineMetrics(Collector):
    """Read from the engine when somebody asks, so counting costs a request nothing."""

    def __init__(self, engine: Engine | VllmEngine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        engine = self._engine
        yield GaugeMetricFamily(
            "finetune_sequences_waiting", "Sequences in the queue", engine.waiting
        )
        yield GaugeMetricFamily(
            "finetune_sequences_under_way", "Sequences being read or answered", engine.under_way
        )
        yield CounterMetricFamily(
            "finetune_tokens", "Tokens answered since the start", engine.num_answered
        )
        yield CounterMetricFamily(
            "finetune_forward_passes", "Forward passes that answered them", engine.num_passes
        )


def register(engine: Engine | VllmEngine) -> None:
    REGISTRY.register(EngineMetrics(engine))
