"""``xrlhf list-dataset-formats``: all formats, some, one."""

from __future__ import annotations

import pytest

from xrlhf.cli.main import main
from xrlhf.data.map_fns import describe_formats


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["list-dataset-formats", *arguments]) == 0
    return capsys.readouterr().out


def test_one_line_a_format(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys).splitlines()
    assert [line.split()[0] for line in lines] == [info.name for info in describe_formats()]
    assert any(line.startswith("shp_map_fn ") and line.endswith("stanfordnlp/SHP.") for line in lines)


def test_a_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(output(capsys, "-p", "helpsteer").splitlines()) == 4
    assert [line.split()[0] for line in output(capsys, "--pattern", "rm_*").splitlines()] == ["rm_bench_map_fn"]


@pytest.mark.parametrize("name", ["pku_saferlhf", "pku_saferlhf_map_fn"])
def test_one_format(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, name)
    for part in (
        "pku_saferlhf_map_fn\n  A question and two answers",
        "\ncolumns\n  prompt (text): the user's turn.\n",
        "\ntraps\n  - The two labels often disagree",
        '\noptions\n  label (required): Which label decides: "better"',
        "\n  empty = 'drop': ",
        "\nlicence\n  CC-BY-NC-4.0",
        "\nin a recipe\n  from xrlhf.data.map_fns import pku_saferlhf_map_fn\n",
        '\n  sources = [dict(source="FILE", map_fn=dict(type=pku_saferlhf_map_fn, label="better"))]\n',
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120


def test_imports_beside_the_function(capsys: pytest.CaptureFixture[str]) -> None:
    assert "\n  from xrlhf.data.sources import JoinedRowsSource\n" in output(capsys, "helpsteer2_pair")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["shp_map_fm"], "error: no format is called 'shp_map_fm'; nearest: 'shp_map_fn'"),
        (["-p", "nothing"], "error: no format matches 'nothing'"),
        (["shp", "-p", "shp"], "error: a format's name or --pattern, not both"),
    ],
)
def test_what_there_is_not(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list-dataset-formats", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(line)
    assert len(captured.err.splitlines()) == 1
