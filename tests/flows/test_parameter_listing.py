"""`finetune parameters --yaml`: a file that `--params` takes as it is, and with all it holds."""

import re
from pathlib import Path

from click.testing import CliRunner

from flows.cli.main import cli
from flows.cli.options import read_parameters
from trainer.contract.parameters import Parameters


def printed() -> str:
    result = CliRunner().invoke(cli, ["parameters", "--yaml"])
    assert result.exit_code == 0, result.exception
    return result.output


def test_the_file_as_it_is_asks_for_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "request.yaml"
    file.write_text(printed())
    assert read_parameters((), file) == Parameters(run_name="my-run")


def test_with_every_comment_taken_away_it_asks_for_the_same(tmp_path: Path) -> None:
    file = tmp_path / "request.yaml"
    text = printed()
    file.write_text(re.sub(r"^# (?=\w+:|  )", "", text, flags=re.MULTILINE))
    assert read_parameters((), file) == Parameters(run_name="my-run")
    named = re.findall(r"^(?:# )?(\w+):", text, re.MULTILINE)
    assert named == list(Parameters.model_fields)
    assert max(map(len, text.splitlines())) <= 120


def test_each_key_of_a_topic_is_there() -> None:
    text = printed()
    for key in ("keep_last: 2", "adam_bits: 32", "max_dollars: 0.0", "ready_minutes: 30.0"):
        assert f"#   {key}" in text
