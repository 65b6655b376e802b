"""Where processes meet, and what is said when they cannot."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from xrlhf.engine.node_list import expand_node_list
from xrlhf.engine.rendezvous import check_host, explain_failed_meeting, interface_towards, meeting_point
from xrlhf.errors import LaunchError


def test_a_list_of_nodes_is_written_out() -> None:
    """As ``scontrol show hostnames`` of slurm 22.05 answers."""
    assert expand_node_list("gpu[01-03,7],x-[1-2]y[1-2],login") == [
        *("gpu01", "gpu02", "gpu03", "gpu7"),
        *("x-1y1", "x-1y2", "x-2y1", "x-2y2", "login"),
    ]


@pytest.mark.parametrize("text", ["gpu[1-", "gpu[3-1]", "gpu[a]", "a,,b", "a,", "", "gpu]1"])
def test_no_list_of_nodes(text: str) -> None:
    with pytest.raises(LaunchError, match=r"^the list of nodes "):
        expand_node_list(text)


def test_the_first_host_without_scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that follow one another, and steps of one job, have ports of their own."""
    monkeypatch.setenv("PATH", str(tmp_path))
    job = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[07-08]"}
    assert meeting_point("slurm", job) == ("gpu07", 16056)
    assert meeting_point("slurm", {**job, "SLURM_STEP_ID": "1"}) == ("gpu07", 16057)
    assert meeting_point("slurm", {**job, "SLURM_JOB_ID": "8"}) == ("gpu07", 16064)
    assert meeting_point("slurm", {**job, "SLURM_STEP_NODELIST": "gpu07"})[0] == "127.0.0.1"
    assert meeting_point("slurm", {**job, "MASTER_ADDR": "a", "MASTER_PORT": "1"}) == ("a", 1)
    with pytest.raises(LaunchError, match=r"^SLURM_STEP_NODELIST: the list .* cannot be read .*, or set MASTER_ADDR$"):
        meeting_point("slurm", {**job, "SLURM_STEP_NODELIST": "gpu[07"})


def test_mpi_over_hosts_needs_an_address() -> None:
    here = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    assert meeting_point("mpi", here) == ("127.0.0.1", 29500)
    assert meeting_point("mpi", {**here, "PMIX_NAMESPACE": "1"}) != meeting_point(
        "mpi", {**here, "PMIX_NAMESPACE": "2"}
    )
    with pytest.raises(LaunchError, match=r"over several hosts \(2 of 4 processes .* needs MASTER_ADDR"):
        meeting_point("mpi", {**here, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"})


@pytest.mark.parametrize("port", ["http", "0", "70000"])
def test_no_port(port: str) -> None:
    with pytest.raises(LaunchError, match=r"^MASTER_PORT must be "):
        meeting_point("pytorch", {"MASTER_PORT": port})


def test_a_host_that_nobody_knows() -> None:
    with pytest.raises(LaunchError, match=r"^ADDR=nosuch\.invalid is not a host that "):
        check_host("ADDR", "nosuch.invalid")


def test_the_way_to_a_host() -> None:
    """Nothing is sent; to itself, and to nobody, no interface leads. 192.0.2.1 is of no network (RFC 5737)."""
    assert interface_towards("127.0.0.1") is None
    assert interface_towards("nosuch.invalid") is None
    assert interface_towards("192.0.2.1") in [None, *(name for _, name in socket.if_nameindex())]


def test_a_port_that_only_root_may_use() -> None:
    said = explain_failed_meeting(PermissionError(errno.EACCES, "Permission denied"), "127.0.0.1", 80)
    assert said == "port 80 may not be used here: set MASTER_PORT to one above 1023"


def test_another_failure() -> None:
    said = explain_failed_meeting(RuntimeError("something\nelse"), "node0", 80)
    assert said == "cannot join the others at node0:80: something else"


def test_a_port_in_use() -> None:
    said = explain_failed_meeting(RuntimeError("port: 29500, error: EADDRINUSE"), "127.0.0.1", 29500, "PORT")
    assert said.startswith("port 29500 of ")
    assert "is in use" in said
    assert "set PORT to a free port" in said
