"""The command line: help, exit statuses, and one clear line for whatever a user can mend."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from xrlhf.cli import main as main_module
from xrlhf.cli import train as train_module
from xrlhf.cli.main import _with_left_out_values, app, main
from xrlhf.cli.train import NEWEST
from xrlhf.engine.stopping import StopRequest
from xrlhf.errors import CheckpointError, TrainingError
from xrlhf.version import __version__

COMMANDS = [
    *("train", "test", "score", "serve", "chat", "generate", "eval", "list-cfg", "copy-cfg", "list-dataset-formats"),
    *("check-dataset", "log-dataset", "env", "report", "convert pth_to_hf", "convert merge", "convert split"),
]


@pytest.fixture(autouse=True)
def own_logger(package_logger: None) -> None:
    """Commands take the package's logger over."""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NPROC_PER_NODE", "NNODES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end with status 2 and one line on the error stream, and returns the line."""

    def run(*arguments: str | Path) -> str:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert (status, len(lines)) == (2, 1), captured.err
        return lines[0]

    return run


# ---------------------------------------------------------------- help and version


def test_all_commands_are_tested_here() -> None:
    listed = sorted(command.name or "" for command in app.registered_commands)
    assert listed == sorted(command for command in COMMANDS if " " not in command)
    assert [group.name for group in app.registered_groups] == ["convert"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_has_help_with_an_example(command: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), option]) == 0
    text = capsys.readouterr().out
    assert f"Usage: xrlhf {command} " in text
    assert f"xrlhf {command}" in text.partition("Example")[2]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert all(command.split()[0] in text for command in COMMANDS)


def test_a_group_of_commands_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    main(["convert"])
    captured = capsys.readouterr()
    assert "pth_to_hf" in captured.out + captured.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"xrlhf {__version__}\n"


# ---------------------------------------------------------------- what the parser refuses


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["frobnicate"], "error: No such command 'frobnicate'; see `xrlhf --help`"),
        (["train"], "error: Missing argument 'CONFIG'; see `xrlhf train --help`"),
        (["train", "a", "--nope"], "error: No such option: --nope; see `xrlhf train --help`"),
        (["test", "a"], "error: Missing option '--checkpoint'; see `xrlhf test --help`"),
        (["convert", "pth_to_hf", "a"], "error: Missing argument 'CHECKPOINT'; see `xrlhf convert pth_to_hf --help`"),
    ],
)
def test_wrong_usage(complaint: Callable[..., str], arguments: list[str], line: str) -> None:
    assert complaint(*arguments) == line


def test_a_value_of_the_wrong_kind(complaint: Callable[..., str]) -> None:
    line = complaint("train", "a", "--seed", "x")
    assert line.startswith("error: Invalid value for '--seed': ")
    assert line.endswith("; see `xrlhf train --help`")


# ---------------------------------------------------------------- options with and without a value


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        ([], []),
        (["train", "a"], ["train", "a"]),
        (["train", "a", "--resume"], ["train", "a", "--resume", NEWEST]),
        (["train", "a", "--resume", "--seed", "1"], ["train", "a", "--resume", NEWEST, "--seed", "1"]),
        (["train", "a", "--resume", "lr=1"], ["train", "a", "--resume", NEWEST, "lr=1"]),
        (["train", "--resume", "a.py"], ["train", "--resume", NEWEST, "a.py"]),
        (["train", "a", "--resume", "auto"], ["train", "a", "--resume", "auto"]),
        (["train", "a", "--resume=auto"], ["train", "a", "--resume=auto"]),
        (["train", "a", "--resume", "runs/iter_5.pth"], ["train", "a", "--resume", "runs/iter_5.pth"]),
        (["train", "a", "--resume", "runs/lr=1/iter_5.pth"], ["train", "a", "--resume", "runs/lr=1/iter_5.pth"]),
        (["score", "m", "--best-of"], ["score", "m", "--best-of", "all"]),
        (["score", "m", "--best-of", "--out", "b"], ["score", "m", "--best-of", "all", "--out", "b"]),
        (["score", "m", "--best-of", "4"], ["score", "m", "--best-of", "4"]),
    ],
)
def test_options_may_stand_alone(given: list[str], completed: list[str]) -> None:
    assert _with_left_out_values(given) == completed


def test_best_of_takes_a_number(complaint: Callable[..., str]) -> None:
    arguments = ("score", "m", "--data", "d", "--out", "o")
    assert complaint(*arguments, "--best-of=x") == (
        "error: --best-of x: a whole number of responses may follow, or nothing for all of them"
    )
    assert complaint(*arguments, "--best-of", "0") == "error: best of 0: choose among 1 or more responses"


# ---------------------------------------------------------------- exit statuses


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (CheckpointError("it is damaged"), 2, "error: it is damaged\n"),
        (TrainingError("step 3: loss nan"), 1, "failed: step 3: loss nan\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (typer.Abort(), 130, "interrupted\n"),
    ],
)
def test_what_an_error_becomes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    line: str,
) -> None:
    def fail(**kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(main_module, "app", fail)
    assert main(["env"]) == status
    assert capsys.readouterr().err == line


def test_an_error_of_our_own_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(main_module, "app", fail)
    with pytest.raises(ZeroDivisionError):
        main(["env"])


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"])
@pytest.mark.parametrize(("rank", "line", "waits"), [("0", "error: x\n", []), ("3", "[process 3] error: x\n", [2])])
def test_the_first_process_speaks_first(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    rank: str,
    line: str,
    waits: list[int],
) -> None:
    """Its launcher ends the others while they wait, so that an error they all meet is printed once."""

    def fail(**kwargs: Any) -> None:
        raise CheckpointError("x")

    waited: list[int] = []
    monkeypatch.setenv(variable, rank)
    monkeypatch.setattr(main_module, "app", fail)
    monkeypatch.setattr(main_module, "linger", waited.append)
    assert main(["env"]) == 2
    assert capsys.readouterr().err == line
    assert waited == waits


# ---------------------------------------------------------------- what a user can mend, before anything is trained


def test_an_unknown_recipe(complaint: Callable[..., str]) -> None:
    assert complaint("train", "tiny_reward_cpuu").startswith("error: no recipe 'tiny_reward_cpuu': neither a file nor")
    assert complaint("train", "gone.py").startswith("error: no recipe 'gone.py': neither a file nor a shipped recipe")


def test_overrides_that_do_not_fit(complaint: Callable[..., str], tiny_recipe: Callable[..., Path]) -> None:
    recipe = tiny_recipe()
    for arguments in (["--cfg-options", "optm.lr=1"], ["optm.lr=1"], ["--cfg-options", "seed=1", "optm.lr=1"]):
        assert complaint("train", recipe, *arguments).startswith(
            "error: --cfg-options optm.lr=1: the recipe has no 'optm.lr'; nearest: "
        )
    assert complaint("train", recipe, "lr=fast").startswith("error: --cfg-options lr=fast: lr is 0.01 (float), but ")
    assert complaint("train", recipe, "surplus") == (
        "error: --cfg-options surplus: expected path=value, such as lr=1e-5 or model.loss.gamma=2"
    )


def test_a_data_file_that_is_missing(complaint: Callable[..., str], tiny_recipe: Callable[..., Path]) -> None:
    line = complaint("train", tiny_recipe(), "dataset.sources.0.source=gone.jsonl")
    assert line.startswith("error: ")
    assert "gone.jsonl" in line


def test_a_device_or_strategy_that_is_not_there(
    complaint: Callable[..., str], tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = tiny_recipe()
    assert complaint("train", recipe, "--device", "tpu") == (
        "error: unknown device 'tpu': choose one of cuda, xpu, hpu, ipex, cpu"
    )
    assert complaint("train", recipe, "--strategy", "zero9") == (
        "error: unknown strategy 'zero9': choose one of single, ddp, fsdp, fsdp_offload, zero1, zero2, zero2_offload, "
        "zero3, zero3_offload"
    )
    assert complaint("train", recipe, "--strategy", "ddp").startswith("error: strategy 'ddp' needs processes to share")
    assert complaint("train", recipe, "--launcher", "srun").startswith("error: unknown launcher 'srun': choose one of")
    assert not list((tmp_path / "tiny").glob("iter_*"))


def test_where_to_start_from(complaint: Callable[..., str], tiny_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe, run = tiny_recipe(), tmp_path / "tiny"
    assert complaint("train", recipe, "--resume").startswith(f"error: --resume, but {run} holds no checkpoint: use")
    assert complaint("train", recipe, "--resume", "gone.pth") == (
        "error: --resume gone.pth: there is no such checkpoint file"
    )
    assert complaint("train", recipe, "--load-from", "gone.pth") == (
        "error: --load-from gone.pth: there is no such checkpoint file"
    )
    assert complaint("train", recipe, "--resume", "auto", "--load-from", "x.pth") == (
        "error: --resume and --load-from exclude each other"
    )
    run.mkdir(exist_ok=True)
    (run / "iter_5.pth").touch()
    assert complaint("train", recipe) == (
        f"error: {run} already holds iter_5.pth: add --resume to go on from it, or choose another --work-dir"
    )


def test_a_wrong_seed(complaint: Callable[..., str], tiny_recipe: Callable[..., Path]) -> None:
    assert complaint("train", tiny_recipe(), "--seed", "-1") == (
        "error: the seed must be a whole number from 0 to 4294967295, got -1"
    )


def test_a_checkpoint_that_cannot_be_tested_or_converted(
    complaint: Callable[..., str], tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = tiny_recipe(validate=False)
    assert complaint("test", recipe, "--checkpoint", "gone.pth") == f"error: {recipe} has no val_dataloader to test on"
    recipe = tiny_recipe()
    assert complaint("test", recipe, "--checkpoint", "gone.pth") == "error: no checkpoint at gone.pth"
    assert complaint("convert", "pth_to_hf", recipe, "gone.pth", "out") == "error: no checkpoint at gone.pth"
    (tmp_path / "some.pth").write_bytes(b"some text")
    assert complaint("test", recipe, "--checkpoint", "some.pth").startswith(
        "error: some.pth is not a readable checkpoint: "
    )


def test_a_group_that_is_not_there(complaint: Callable[..., str], tiny_recipe: Callable[..., Path]) -> None:
    assert complaint("log-dataset", tiny_recipe(), "--index", "64") == (
        "error: --index 64: train_dataloader has groups 0 to 63"
    )
    assert "'rl_dataloader'" in complaint("log-dataset", tiny_recipe(), "--section", "rl_dataloader")


# ---------------------------------------------------------------- what the quick commands print


def test_env(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    assert f"xrlhf: {__version__}" in capsys.readouterr().out


def test_check_dataset(
    capsys: pytest.CaptureFixture[str], tiny_recipe: Callable[..., Path], tiny_parts: Path, tmp_path: Path
) -> None:
    """Row 65 has no rejected answer, row 66 a blank one: each is named with its line."""
    bad = tmp_path / "bad.jsonl"
    rows = (tiny_parts / "pairs.jsonl").read_text()
    bad.write_text(rows + '{"prompt": "ask", "chosen": " say ."}\n{"prompt": "a", "chosen": "b", "rejected": " "}\n')
    recipe = tiny_recipe()
    assert main(["check-dataset", str(recipe), f"dataset.sources.0.source={bad}", "dataset.max_bad_share=0.1"]) == 0
    text = capsys.readouterr().out
    assert "train_dataloader: 64 groups" in text
    assert "val_dataloader: 16 groups" in text
    assert f"{bad}:65: " in text
    assert f"{bad}:66: " in text


def test_check_dataset_of_chosen_answers(capsys: pytest.CaptureFixture[str], tiny_recipe: Callable[..., Path]) -> None:
    """A map function inside another is written, checked and dumped as any other."""
    wrapped = "dict(type=chosen_only_map_fn, map_fn=dict(type=text_pair_map_fn, empty='keep'))"
    extra = f"from xrlhf.data.map_fns import chosen_only_map_fn\ndataset['sources'][0]['map_fn'] = {wrapped}"
    assert main(["check-dataset", str(tiny_recipe(extra=extra))]) == 0
    assert "train_dataloader: 64 groups" in capsys.readouterr().out


@pytest.mark.parametrize("ids", [False, True])
def test_log_dataset(capsys: pytest.CaptureFixture[str], tiny_recipe: Callable[..., Path], ids: bool) -> None:
    """Row 0: ``ask red``, then ``say red good .`` against ``tell bad .``"""
    assert main(["log-dataset", str(tiny_recipe()), *(["--ids"] if ids else [])]) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line for line in lines if line.startswith("--- ")]
    assert titles == [
        "--- prompt (computed once): 2 tokens",
        "--- response 1 (best): 4 tokens",
        "--- response 2 (rank 2): 3 tokens",
    ]
    assert lines[0].endswith("row 0: 9 tokens to compute")
    if ids:
        assert [line.split()[-3:] for line in lines if "scored here" in line] == [["<-", "scored", "here"]] * 2
        assert lines[2].split() == ["0", "2", "'ask'"]
    else:
        assert lines[2::2] == ["ask red", "say red good .", "tell bad ."]


# ---------------------------------------------------------------- --dry-run


def test_a_dry_run_trains_nothing(
    capsys: pytest.CaptureFixture[str], tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    assert main(["train", str(tiny_recipe()), "--dry-run", "lr=0.5", "--work-dir", "elsewhere", "--seed", "3"]) == 0
    text = capsys.readouterr().out
    assert 'work_dir = "elsewhere"' in text
    assert "randomness = dict(seed=3)" in text
    assert "lr = 0.5" in text
    for part in (
        "parameters, ",
        "20 optimizer steps of 8 groups",
        "tokens to compute",
        "total  ",
        "nothing was trained",
    ):
        assert part in text
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.py"}


def test_a_dry_run_of_several_processes_starts_none(
    capsys: pytest.CaptureFixture[str], tiny_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPROC_PER_NODE", "4")
    monkeypatch.setenv("NNODES", "2")
    assert main(["train", str(tiny_recipe()), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "on each of 8 process(es)" in text
    assert text.count("nothing was trained") == 1


# ---------------------------------------------------------------- Ctrl-C, and signals of a cluster


class Interrupted:
    """A runner that Ctrl-C stops in step 8 of 20: 7 are done."""

    iter, max_iters = 7, 20

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = str(work_dir)

    was_stopped = False

    def train(self, stop_request: StopRequest) -> None:
        raise KeyboardInterrupt


class Stopped(Interrupted):
    """A run that was sent a signal in its seventh step, and saved."""

    was_stopped = True
    strategy = SimpleNamespace(barrier=lambda: None)

    def train(self, stop_request: StopRequest) -> None:
        with stop_request.listening():
            os.kill(os.getpid(), signal.SIGTERM)
        (Path(self.work_dir) / "iter_7.pth").touch()


@pytest.mark.parametrize(
    ("saved", "advice"),
    [([], "no checkpoint was taken yet"), ([5, 6], "go on from iter_6.pth with --resume")],
)
def test_ctrl_c_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str],
    tiny_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saved: list[int],
    advice: str,
) -> None:
    for step in saved:
        (tmp_path / f"iter_{step}.pth").touch()
    monkeypatch.setattr("xrlhf.engine.build.build_runner", lambda recipe, **options: Interrupted(tmp_path))
    assert main(["train", str(tiny_recipe())]) == 130
    assert capsys.readouterr().err == f"interrupted at step 8 of 20: {advice}\n"
    assert train_module.INTERRUPTED == 130


def test_a_signal_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str],
    tiny_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("xrlhf.engine.build.build_runner", lambda recipe, **options: Stopped(tmp_path))
    assert main(["train", str(tiny_recipe())]) == 75
    assert capsys.readouterr().err == "stopped by SIGTERM at step 7 of 20: go on from iter_7.pth with --resume\n"


def test_ctrl_c_before_the_first_step(
    capsys: pytest.CaptureFixture[str], tiny_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(recipe: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("xrlhf.engine.build.build_runner", interrupted)
    assert main(["train", str(tiny_recipe())]) == 130
    assert capsys.readouterr().err == "interrupted before the first step\n"


# ---------------------------------------------------------------- formats of rows to be scored


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--format-option", "label=safer"], "error: --format-option belongs to a format: name it with --format"),
        (["--format", "llmbra"], "error: no format is called 'llmbra'; nearest: 'llmbar'; "),
        (["--format", "pku_saferlhf"], "error: map_fn pku_saferlhf_map_fn has no default for label: write "),
        (["--format", "pku_saferlhf", "--format-option", "label"], "error: format option 'label': expected name="),
    ],
)
def test_wrong_formats_are_refused_before_the_model_is_read(
    complaint: Callable[..., str], options: list[str], line: str
) -> None:
    assert complaint("score", "no-model", "--data", "rows.jsonl", "--out", "out.jsonl", *options).startswith(line)
