"""A wrong address is one line within seconds; what nodes can hold is counted."""

import socket
import sys
import time

import pytest

from autopeft import settings as settings_file
from autopeft.errors import UserError
from autopeft.settings import Settings, from_mapping


@pytest.fixture
def cluster():
    from autopeft.runners import cluster

    return cluster


def test_an_address_implies_the_ray_runner():
    values = settings_file.complete({"address": "auto"})
    assert from_mapping(values, "t").runner == "ray"
    assert settings_file.complete({"address": ""}).get("runner") is None
    with pytest.raises(UserError, match="--address: serial"):
        settings_file.complete({"address": "auto", "runner": "serial"})


def test_a_run_may_go_on_at_another_address():
    assert Settings(address="a:1", runner="ray").digest() == Settings().digest()


def test_a_ray_client_is_refused_with_the_reason():
    with pytest.raises(UserError, match=r"--address ray://a:10001: the run's files lie where"):
        Settings(address="ray://a:10001")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nonsense", "'nonsense' is no address"),
        ("host:port", "is no address"),
        (":6379", "is no address"),
        ("127.0.0.1:99999", "nothing listens"),
        ("127.0.0.1:1", r"nothing listens at 127.0.0.1:1 \(Connection refused\)"),
    ],
)
def test_nobody_there_is_said_at_once(cluster, address, words):
    started = time.monotonic()
    with pytest.raises(UserError, match=words):
        cluster.connect(address)
    assert time.monotonic() - started < 5


def test_the_address_can_be_asked_before_anything_is_prepared():
    from autopeft.runners import check_address

    check_address(Settings())
    check_address(Settings(runner="ray"))
    with pytest.raises(UserError, match="nothing listens"):
        check_address(Settings(runner="ray", address="127.0.0.1:1"))


def test_something_else_that_listens_is_given_up(cluster, monkeypatch):
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(UserError, match="no Ray cluster answers there"):
            cluster.check(address)
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("AuthenticationError: InvalidAuthToken: x", "refuses the token.*RAY_AUTH_MODE=token"),
        ("ConnectionError: Could not find any running Ray instance.", "no Ray cluster runs on"),
        ("RuntimeError: this node has an IP address of x", "IP address of x.*must be a node"),
    ],
)
def test_what_ray_says_becomes_what_to_do(cluster, monkeypatch, said, words):
    code = f"import sys; sys.exit({said!r})"
    monkeypatch.setattr(cluster, "_FIND", code)
    with pytest.raises(UserError, match=words):
        cluster.check("auto")


def test_an_older_ray_without_that_question_is_not_refused(cluster, monkeypatch):
    monkeypatch.setattr(cluster, "_FIND", "from os import nothing_of_this_name")
    cluster.check("auto")
    assert "ray" in sys.modules


def test_a_node_without_autopeft_is_named(cluster):
    text = "died\n\tip: 10.0.0.7\nModuleNotFoundError: No module named 'autopeft'\nRuntimeError: x"
    assert cluster.last_line(Exception(text)) == (
        "node 10.0.0.7 has no autopeft, or another version; install the same one on every node"
    )
    assert cluster.last_line(Exception("a\n  autopeft.errors.RunError: b c\n")) == "b c"
    assert cluster.last_line(ValueError()) == "ValueError"


def node(cpus, gpus=0.0, alive=True):
    return {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}}


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "workers"),
    [
        ([], 1, 0, 0),
        ([node(4), node(3)], 2, 0, 3),  # halves of a worker on two nodes are none
        ([node(4), node(4, alive=False)], 1, 0, 4),
        ([node(16, 2), node(16)], 2, 1.0, 2),  # a node without GPU holds none
        ([node(16, 2)], 2, 0.5, 4),
        ([node(16, 2)], 2, 0.4, 4),  # a share lies on one GPU: two each, .2 left on both
        ([node(3, 2)], 2, 0.5, 1),  # too few cores for the second
        ([node(16, 5)], 1, 2.0, 2),
        ([{"Alive": True, "Resources": {}}], 1, 0, 0),  # a head that takes no work
    ],
)
def test_workers_that_nodes_can_hold(cluster, nodes, cpus, gpus, workers):
    assert cluster.capacity(nodes, cpus, gpus) == workers
