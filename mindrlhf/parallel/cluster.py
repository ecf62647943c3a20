"""What the launcher's words and the environment say of a job: the script, the workers, their nodes."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindrlhf.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
USAGE = 'usage: bash scripts/msrun_launcher.sh "SCRIPT ARGS" [WORKERS]'
ONE_NODE = ("WORKERS", "MASTER_PORT", "LOG_DIR", "JOIN", "CLUSTER_TIME_OUT")
MANY_NODES = ("WORKERS", "LOCAL_WORKERS", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", *ONE_NODE[2:])
HELP = f"""{USAGE}
       bash scripts/msrun_launcher.sh "SCRIPT ARGS" {" ".join(ONE_NODE)}
       bash scripts/msrun_launcher.sh "SCRIPT ARGS" {" ".join(MANY_NODES)}

Runs SCRIPT on WORKERS workers, 8 unless told otherwise, and shows rank 0. One worker is SCRIPT itself, no cluster.
The third form is given on every node, with its own NODE_RANK from 0; WORKERS are those of all nodes together, of which
each has LOCAL_WORKERS.

  LOG_DIR           folder for the logs of all workers
  JOIN              True: wait for the end; False: leave the job in the background, its output in LOG_DIR/launcher.log
  CLUSTER_TIME_OUT  seconds in which all workers must have met; below 0: no limit

environment:
  MSRUN_LOG_DIR    folder for the logs of all workers; else a temporary one, kept when the run fails
  OMP_NUM_THREADS  threads of a worker; else cores / workers
  NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT  as the third form, for the first; WORKERS being those of all nodes"""
LARGEST_PORT = 65535


@dataclass(frozen=True)
class Cluster:
    """The workers of a job and those of them on this node."""

    workers: int
    nodes: int
    node_rank: int
    address: str
    port: int

    @property
    def local(self) -> range:
        """Ranks on this node."""
        count = self.workers // self.nodes
        return range(self.node_rank * count, (self.node_rank + 1) * count)

    @classmethod
    def from_environment(cls, workers: int) -> Cluster:
        """NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT; without them one node and a free port."""
        nodes = _whole("NNODES", os.environ.get("NNODES", "1"), 1)
        if workers % nodes:
            raise UserError(f"{workers} workers cannot be spread evenly over NNODES={nodes} nodes")
        if nodes > 1:
            missing = [name for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
            if missing:
                raise UserError(f"NNODES={nodes} needs {', '.join(missing)} to be set on every node")
        rank = os.environ.get("NODE_RANK", "0") if nodes > 1 else "0"
        port = _whole("MASTER_PORT", os.environ.get("MASTER_PORT", "0"), 0, LARGEST_PORT) or free_port()
        return cls._checked(workers, nodes, rank, os.environ.get("MASTER_ADDR", "127.0.0.1"), port)

    @classmethod
    def from_words(cls, given: dict[str, str]) -> Cluster:
        """Words by their names in ONE_NODE or MANY_NODES, which win over the environment."""
        workers = _workers(given["WORKERS"])
        local = _whole("LOCAL_WORKERS", given.get("LOCAL_WORKERS", str(workers)), 1)
        if workers % local:
            raise UserError(f"{workers} workers cannot be spread over nodes of LOCAL_WORKERS={local} each")
        nodes = workers // local
        port = _whole("MASTER_PORT", given["MASTER_PORT"], 1, LARGEST_PORT)
        if nodes == 1:
            return cls._checked(workers, 1, "0", "127.0.0.1", port)
        return cls._checked(workers, nodes, given["NODE_RANK"], given["MASTER_ADDR"], port)

    @classmethod
    def _checked(cls, workers: int, nodes: int, node_rank: str, address: str, port: int) -> Cluster:
        rank = _whole("NODE_RANK", node_rank, 0)
        if rank >= nodes:
            raise UserError(f"NODE_RANK={rank} is none of the {nodes} nodes, whose numbers are 0 to {nodes - 1}")
        try:
            family, *_, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError) as error:
            raise UserError(f"MASTER_ADDR={address} is no address of a machine ({error})") from None
        # Of several nodes another launcher of this job may be listening.
        if nodes == 1 and workers > 1:
            _require_free(family, place)
        return cls(workers, nodes, rank, address, port)


@dataclass(frozen=True)
class Launch:
    """One call of the launcher. `words`: the script and its arguments. `timeout`: seconds, None as msrun has it."""

    words: list[str]
    cluster: Cluster
    log_folder: str | None = None
    background: bool = False
    timeout: int | None = None


def parse(argv: Sequence[str]) -> Launch:
    """The command line: "SCRIPT ARGS" and nothing, WORKERS, ONE_NODE or MANY_NODES behind it.

    Raises:
        UserError: another number of words, a value that means nothing, no such script, a port in use.
    """
    forms = {len(ONE_NODE): ONE_NODE, len(MANY_NODES): MANY_NODES}
    if len(argv) not in (1, 2, *(count + 1 for count in forms)):
        raise UserError(f"{USAGE}: one quoted string alone or with 1, 5 or 8 words behind it, but {len(argv)} came")
    words = _command(argv[0])
    folder = os.environ.get("MSRUN_LOG_DIR")
    if len(argv) <= 2:
        return Launch(words, Cluster.from_environment(_workers(argv[1] if len(argv) == 2 else "8")), folder)
    given = dict(zip(forms[len(argv) - 1], argv[1:]))
    if not given["LOG_DIR"]:
        raise UserError("LOG_DIR is empty; name the folder for the logs")
    if given["JOIN"].lower() not in ("true", "false"):
        raise UserError(f"JOIN={given['JOIN']} is neither True nor False")
    timeout = _whole("CLUSTER_TIME_OUT", given["CLUSTER_TIME_OUT"])
    cluster = Cluster.from_words(given)
    return Launch(words, cluster, given["LOG_DIR"], given["JOIN"].lower() == "false", timeout)


def joined(argv: Sequence[str]) -> list[str]:
    """The same command line with JOIN True; it has 6 or 9 words."""
    words = list(argv)
    words[-2] = "True"
    return words


def is_free(port: int) -> bool:
    """Whether nothing listens on this port of this machine."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _command(quoted: str) -> list[str]:
    try:
        words = shlex.split(quoted)
    except ValueError as error:
        raise UserError(f"the command {quoted!r} cannot be split into words: {error}") from None
    if not words:
        raise UserError(f"{USAGE}: no script is named")
    script = next((path for path in (Path(words[0]), ROOT / words[0]) if path.is_file()), None)
    if script is None:
        hint = "; leave the word python away" if words[0].startswith("python") else ""
        places = " and ".join(dict.fromkeys([str(Path.cwd()), str(ROOT)]))
        raise UserError(f"no such script: {words[0]} (looked in {places}){hint}")
    return [str(script), *words[1:]]


def _workers(given: str) -> int:
    if not (given.isascii() and given.isdigit()) or int(given) == 0:
        raise UserError(f"the number of workers must be a positive whole number, not '{given}'")
    return int(given)


def _whole(name: str, given: str, least: int | None = None, most: int | None = None) -> int:
    """The whole number that is given for `name`, within its bounds."""
    digits = given.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        raise UserError(f"{name}={given} is not a whole number")
    value = int(given)
    if (least is not None and value < least) or (most is not None and value > most):
        raise UserError(f"{name}={given} must be {f'from {least} to {most}' if most else f'{least} at least'}")
    return value


def _require_free(family: socket.AddressFamily, place: tuple[Any, ...]) -> None:
    with socket.socket(family) as probe:
        # As MindSpore's scheduler binds it: what a job before left to time out is no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place)
        except OSError as error:
            raise UserError(
                f"{place[0]}:{place[1]}, of MASTER_ADDR and MASTER_PORT, cannot be used on this machine "
                f"({error.strerror}); name another port"
            ) from None
