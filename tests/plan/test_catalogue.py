"""GPUs and prices as data: what is shipped, and a user's own files."""

from pathlib import Path

import pytest

from trainer.planning.catalogue import find_gpu, load_gpus, load_prices


def test_prices_give_the_references_figures() -> None:
    prices = load_prices()
    assert prices.per_hour("A40", gpus=1, cores=8, memory_gib=128) == pytest.approx(2.00)
    assert prices.per_hour("RTX_A5000", gpus=1, cores=4, memory_gib=8) == pytest.approx(0.85)


def test_every_priced_class_is_known_and_the_other_way_round() -> None:
    assert load_prices().gpus.keys() == load_gpus().keys()


def test_a_class_may_have_a_spot_price_below_its_own(tmp_path: Path) -> None:
    prices = load_prices()
    assert prices.spot and prices.spot.keys() <= prices.gpus.keys()
    assert all(price < prices.gpus[gpu] for gpu, price in prices.spot.items())
    assert prices.per_hour("A40", gpus=1, cores=8, memory_gib=128, spot=True) is None
    own = tmp_path / "prices.yaml"
    own.write_text("core: 0.01\nmemory_gib: 0.005\ngpus: {A40: 1}\n")
    assert load_prices(own).spot == {}
    own.write_text("core: 0.01\nmemory_gib: 0.005\ngpus: {A40: 1}\nspot: {A40: free}\n")
    with pytest.raises(ValueError, match="spot: A40 is no number"):
        load_prices(own)


def test_machine_without_a_gpu_has_a_price() -> None:
    assert load_prices().per_hour("", gpus=0, cores=4, memory_gib=8) == pytest.approx(0.08)


def test_own_file_replaces_the_catalogue(tmp_path: Path) -> None:
    path = tmp_path / "gpus.yaml"
    path.write_text(
        "Mine: {memory_gib: 24, peak_tflops: 100, bandwidth_gbs: 900, host_gbs: 20, "
        "peer_gbs: 20, bf16: true, most_per_node: 2}\n"
    )
    assert list(load_gpus(path)) == ["Mine"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Mine: {memory_gib: 24}", "Mine has the wrong keys"),
        ("Mine: 24", "Mine has the wrong keys"),
        ("- Mine", "is no mapping"),
        ("Mine: [", "is not YAML"),
        (
            "Mine: {memory_gib: lots, peak_tflops: 1, bandwidth_gbs: 1, host_gbs: 1, peer_gbs: 1, "
            "bf16: true, most_per_node: 1}",
            "Mine: memory_gib is no number of 0 or more (got 'lots')",
        ),
    ],
)
def test_damaged_catalogue_is_refused_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "gpus.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_gpus(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("price", ["-1", "free", "true", ".nan"])
def test_price_that_is_no_number_is_refused(tmp_path: Path, price: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(f"core: 0.01\nmemory_gib: 0.005\ngpus: {{A40: {price}}}\n")
    with pytest.raises(ValueError, match="gpus: A40 is no number"):
        load_prices(path)


def test_unknown_class_gets_near_names() -> None:
    with pytest.raises(ValueError, match="Did you mean RTX_A5000"):
        find_gpu(load_gpus(), "A5000")
    with pytest.raises(ValueError, match="Did you mean H100_PCIE or H100_NVLINK_80GB"):
        find_gpu(load_gpus(), "h100")
