"""The launcher's command line, and what it shows and repeats of a worker's output."""

from __future__ import annotations

import io
import socket
from pathlib import Path

import pytest

from mindrlhf.parallel import launch
from mindrlhf.parallel.cluster import ROOT, Cluster, Launch, free_port, parse
from mindrlhf.parallel.launch import Follower, Job, last_words, main
from mindrlhf.runtime.errors import UserError

CPP_LINE = b"[INFO] DISTRIBUTED(812,7f30,python):2026-11-21-09:26:48.765.181 [tcp_server.cc:313] Start] success!\n"
PYTHON_LINE = b"[WARNING] ME(812:1405,MainProcess):2026-11-21-09:26:48.765.000 [x.py:1] deprecated\n"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.py").touch()
    return "x.py"


def test_the_command_is_split_as_a_shell_would(script: str) -> None:
    found = parse([f"{script} --predict_data 'how are you?' \"a b\" beta=0.1", "2"])
    assert found.words == ["x.py", "--predict_data", "how are you?", "a b", "beta=0.1"]
    assert found.cluster.workers == 2


def test_eight_workers_by_default(script: str) -> None:
    assert parse([script]).cluster.workers == 8


def test_a_script_of_the_repository_is_found_from_anywhere(script: str) -> None:
    assert parse(["scripts/msrun_launcher.sh"]).words == [str(ROOT / "scripts/msrun_launcher.sh")]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "but 0 came"),
        (["x.py", "--config", "2"], "with 1, 5 or 8 words behind it, but 3 came"),
        ([""], "no script is named"),
        (["x.py 'open", "2"], "No closing quotation"),
        (["gone.py", "2"], "no such script: gone.py"),
        (["x.py", "0"], "positive whole number, not '0'"),
        (["x.py", "two"], "positive whole number, not 'two'"),
        (["x.py", "2", "70000", "logs", "True", "60"], "MASTER_PORT=70000 must be from 1 to 65535"),
        (["x.py", "2", "", "logs", "True", "60"], "MASTER_PORT= is not a whole number"),
        (["x.py", "2", "8118", "", "True", "60"], "LOG_DIR is empty"),
        (["x.py", "2", "8118", "logs", "yes", "60"], "JOIN=yes is neither True nor False"),
        (["x.py", "2", "8118", "logs", "True", "1m"], "CLUSTER_TIME_OUT=1m is not a whole number"),
        (["x.py", "8", "3", "127.0.0.1", "8118", "0", "logs", "True", "60"], "cannot be spread over nodes of LOCAL_W"),
        (["x.py", "8", "0", "127.0.0.1", "8118", "0", "logs", "True", "60"], "LOCAL_WORKERS=0 must be 1 at least"),
        (["x.py", "8", "4", "127.0.0.1", "8118", "2", "logs", "True", "60"], "NODE_RANK=2 is none of the 2 nodes"),
        (["x.py", "8", "4", "127.0.0.1", "8118", "-1", "logs", "True", "60"], "NODE_RANK=-1 must be 0 at least"),
        (["x.py", "8", "4", "a..b", "8118", "0", "logs", "True", "60"], "MASTER_ADDR=a..b is no address"),
    ],
)
def test_bad_usage(argv: list[str], sentence: str, script: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse(argv)


def test_six_words_are_one_node(script: str) -> None:
    port = free_port()
    found = parse([script, "4", str(port), "my logs", "True", "-1"])
    assert found == Launch(["x.py"], Cluster(4, 1, 0, "127.0.0.1", port), "my logs", False, -1)


def test_nine_words_are_one_of_several_nodes(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNODES", "3")
    monkeypatch.setenv("MSRUN_LOG_DIR", "elsewhere")
    found = parse([script, "8", "4", "10.0.0.1", "8118", "1", "logs", "false", "7200"])
    assert found == Launch(["x.py"], Cluster(8, 2, 1, "10.0.0.1", 8118), "logs", True, 7200)
    assert list(found.cluster.local) == [4, 5, 6, 7]


def test_nine_words_with_all_workers_here_are_one_node(script: str) -> None:
    port = free_port()
    found = parse([script, "2", "2", "10.0.0.1", str(port), "0", "logs", "True", "60"])
    assert found.cluster == Cluster(2, 1, 0, "127.0.0.1", port)


def test_a_port_in_use_is_refused(script: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}, .* cannot be used .*in use.*name another port"):
            parse([script, "2", str(port), "logs", "True", "60"])


def test_the_word_python_is_not_part_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as caught:
        parse(["python run_dpo.py --config x.yaml", "1"])
    assert str(caught.value) == f"no such script: python (looked in {ROOT}); leave the word python away"


def test_help_is_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: bash scripts/msrun_launcher.sh")
    assert "MSRUN_LOG_DIR" in said


def test_a_python_without_mindspore_is_named(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="has no mindspore; activate the environment"):
        main([script, "2"])


def test_msrun_that_ends_alone_is_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "node_0.log").write_bytes(CPP_LINE + b"Traceback (most recent call last):\n  x\nValueError: no port\n")
    job = Job(["x.py"], Cluster(2, 1, 0, "127.0.0.1", 8118), tmp_path)
    assert job._verdict(1) == 1
    assert capsys.readouterr().err == "error: msrun ended before its workers: ValueError: no port\n"


def test_nodes_share_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "8118"}.items():
        monkeypatch.setenv(name, value)
    cluster = Cluster.from_environment(8)
    assert list(cluster.local) == [4, 5, 6, 7]
    assert (cluster.address, cluster.port) == ("10.0.0.1", 8118)
    with pytest.raises(UserError, match="7 workers cannot be spread evenly"):
        Cluster.from_environment(7)
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(UserError, match="needs MASTER_ADDR to be set"):
        Cluster.from_environment(8)


def test_follower_is_live_and_leaves_log_lines_out(tmp_path: Path) -> None:
    path, shown = tmp_path / "log", io.BytesIO()
    follower = Follower(path, shown, filtered=True)
    steps = [
        (b"begin\n", b"begin\n"),
        (b"\rstep 1", b"\rstep 1"),
        (b"\rstep 2\n", b"\rstep 2\n"),
        (CPP_LINE[:9], b""),
        (CPP_LINE[9:] + PYTHON_LINE, b""),
        (b"[1, 2]\n[INFO] ours\n", b"[1, 2]\n[INFO] ours\n"),
    ]
    follower.show()
    for written, expected in steps:
        with open(path, "ab") as file:
            file.write(written)
        before = len(shown.getvalue())
        follower.show()
        assert shown.getvalue()[before:] == expected


def test_follower_shows_all_to_a_user_who_asked_for_it(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(CPP_LINE)
    shown = io.BytesIO()
    Follower(tmp_path / "log", shown, filtered=False).show(last=True)
    assert shown.getvalue() == CPP_LINE


def test_last_words_are_the_sentence() -> None:
    stderr = b"warning: x\nerror: model.y: no such key\n" + CPP_LINE
    assert last_words(stderr, 2) == "error: model.y: no such key"


def test_last_words_are_the_traceback() -> None:
    stderr = b'noise\nTraceback (most recent call last):\n  File "a.py", line 1\nValueError: boom\n' + CPP_LINE
    assert last_words(stderr, 1) == 'Traceback (most recent call last):\n  File "a.py", line 1\nValueError: boom'


def test_last_words_of_the_silent_and_the_killed() -> None:
    assert last_words(CPP_LINE, 3) == "ended with exit code 3"
    assert last_words(b"error: x\n", -9) == "killed by signal 9"
