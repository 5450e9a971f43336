"""Files between the driver and a node that sees none of its disk."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from fake_worker import make_candidate, make_setup

from autopeft.errors import RunError
from autopeft.files import lock
from autopeft.job import Job, Outcome
from autopeft.runners import transport
from autopeft.runners.transport import FileServer, Node, Parcel, fetch, pack, state_of, unpack

PIXELS = bytes(range(256)) * 5


@pytest.fixture
def setup(tmp_path):
    """A setup on the driver's disk."""
    images = tmp_path / "driver" / "images-0123"
    images.mkdir(parents=True)
    (images / "images.npy").write_bytes(PIXELS)
    (images / "store.json").write_text("{}")
    (images / "filled.npy").write_bytes(b"private")
    weights = tmp_path / "driver" / "w.safetensors"
    weights.write_bytes(b"weights")
    return make_setup(
        images=str(images), weights=str(weights), cache="/c", run_dir=str(tmp_path / "run")
    )


@pytest.fixture
def server(setup, monkeypatch):
    monkeypatch.setattr(transport, "CHUNK", 100)
    return FileServer(setup)


def test_a_node_gets_its_own_places_and_the_same_digest(setup, server, tmp_path):
    node = Node(tmp_path / "node")
    own = node.settle(setup, server.listing(), server.read)
    assert own.digest() == setup.digest()
    for place in (own.images, own.weights, own.cache, own.run_dir):
        assert Path(place).is_relative_to(tmp_path / "node")
    assert Path(own.images).name == "images-0123"
    assert Path(own.weights).name == "w.safetensors"
    assert (Path(own.images) / "images.npy").read_bytes() == PIXELS
    assert Path(own.weights).read_bytes() == b"weights"
    assert (tmp_path / "node").stat().st_mode & 0o777 == 0o700


def test_the_server_gives_what_the_setup_names_and_nothing_else(server):
    assert sorted(server.listing()) == ["images/images.npy", "images/store.json", "weights"]
    for name in ("images/filled.npy", "../w.safetensors", "/etc/passwd", ""):
        with pytest.raises(KeyError):
            server.read(name, 0)


def test_a_setup_without_files_needs_none(tmp_path):
    server = FileServer(make_setup(simulated={"seconds": 0}))
    assert server.listing() == {}
    own = Node(tmp_path / "node").settle(make_setup(), {}, server.read)
    assert (own.images, own.weights) == (None, None)


def test_files_are_copied_once_however_many_workers_start(setup, server, tmp_path):
    asked, nodes, places = [], [Node(tmp_path / "node") for _ in range(8)], set()

    def read(name, offset):
        asked.append((name, offset))
        return server.read(name, offset)

    def settle(node):
        places.add(node.settle(setup, server.listing(), read).run_dir)

    workers = [threading.Thread(target=settle, args=(node,)) for node in nodes]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(places) == 8  # each has a folder of its own, and none was swept away
    assert all(Path(place).is_dir() for place in places)
    assert len(asked) == len(set(asked)) == 13 + 1 + 1  # 1280 bytes by 100, and two small files


def test_a_damaged_or_changed_copy_is_made_again(setup, server, tmp_path):
    node = Node(tmp_path / "node")
    copy = Path(node.settle(setup, server.listing(), server.read).images) / "images.npy"
    copy.write_bytes(PIXELS[:-1])
    node.settle(setup, server.listing(), server.read)
    assert copy.read_bytes() == PIXELS
    (Path(setup.images) / "images.npy").write_bytes(PIXELS[::-1])
    node.settle(setup, FileServer(setup).listing(), server.read)
    assert copy.read_bytes() == PIXELS[::-1]


def test_what_does_not_arrive_whole_leaves_nothing(setup, server, tmp_path):
    wanted = {"images.npy": server.listing()["images/images.npy"]}
    target = tmp_path / "node" / "x"
    for answer in (b"", b"\0" * 100):
        with pytest.raises(RunError, match=r"images\.npy changed while it was copied"):
            fetch(target, wanted, lambda name, offset, answer=answer: answer)
        assert [p.name for p in target.parent.iterdir()] == ["x.lock"]


def test_left_overs_of_killed_copiers_and_dead_workers_go(setup, server, tmp_path):
    root = tmp_path / "node"
    (root / "images" / ".images-0123.half").mkdir(parents=True)
    (root / "workers" / "dead").mkdir(parents=True)
    (root / "workers" / "dead.lock").touch()
    (root / "workers" / "live").mkdir()
    with lock(root / "workers" / "live.lock"):
        Node(root).settle(setup, server.listing(), server.read)
    assert not (root / "images" / ".images-0123.half").exists()
    assert not (root / "workers" / "dead").exists()
    assert (root / "workers" / "live").exists()


def test_a_folder_of_somebody_else_is_refused(setup, server, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(RunError, match="AUTOPEFT_NODE_DIR"):
        Node(tmp_path / "node").settle(setup, server.listing(), server.read)


def test_states_and_predictions_go_there_and_back(setup, tmp_path):
    own = replace(setup, run_dir=str(tmp_path / "node"))
    job = Job("rung", "s", make_candidate(), start=1, stop=3, state="before")
    with state_of(own, job, {"state.safetensors": b"1"}):
        states = tmp_path / "node" / "states"
        assert (states / "before" / "state.safetensors").read_bytes() == b"1"
        (states / "after").mkdir()
        (states / "after" / "state.safetensors").write_bytes(b"2")
        (tmp_path / "node" / "predictions").mkdir()
        (tmp_path / "node" / "predictions" / "p.npz").write_bytes(b"3")
        parcel = pack(own, job, Outcome("ok", "", 3, "p.npz", state="after"))
        assert pack(own, job, Outcome("ok", "", 3, state="before")).state is None
    assert list((tmp_path / "node").iterdir()) == []  # a node keeps nothing of a run
    unpack(setup.run_dir, parcel)
    run = Path(setup.run_dir)
    assert (run / "states" / "after" / "state.safetensors").read_bytes() == b"2"
    assert (run / "predictions" / "p.npz").read_bytes() == b"3"
    assert (run / "predictions" / "p.npz").stat().st_mode & 0o777 == 0o600
    assert transport.state_files(setup.run_dir, "after") == {"state.safetensors": b"2"}
    assert transport.state_files(setup.run_dir, None) is None
    assert transport.state_files(setup.run_dir, "deleted") == {}


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "", ".", "..", ".hidden", "a\0b"])
def test_names_from_a_worker_stay_below_the_run(tmp_path, name):
    for parcel in (
        Parcel(predictions=(name, b"x")),
        Parcel(state=(name, {"a": b"x"})),
        Parcel(state=("s", {name: b"x"})),
    ):
        with pytest.raises(RunError, match="a worker sent a file named"):
            unpack(str(tmp_path / "run"), parcel)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
