"""Real Ray nodes: files that are copied, a node that is lost, one that joins, what is shown."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from ray_nodes import HERE, Nodes, descendants, kill, may_unshare, until

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def nodes():
    """A cluster of one node, in a folder with a short name: Ray puts sockets there."""
    folder = Path(tempfile.mkdtemp(prefix="ap"))
    started = None
    try:
        started = Nodes(folder)
        yield started
    finally:
        if started is not None:
            started.end()
        shutil.rmtree(folder, ignore_errors=True)


class Driver:
    """``cluster_driver.py`` as a process; what it says is read from a file."""

    def __init__(self, nodes, folder, gpus=0):
        self.folder, self.out = folder, folder / "out.jsonl"
        command = [sys.executable, HERE / "cluster_driver.py", nodes.address, folder, str(gpus)]
        with self.out.open("w") as out, (folder / "err.txt").open("w") as err:
            self.process = subprocess.Popen(command, stdout=out, stderr=err, env=nodes.env)

    def lines(self):
        return [json.loads(line) for line in self.out.read_text().splitlines(keepends=True)
                if line.endswith("\n")]  # fmt: skip

    def places(self, after=0):
        """Node id -> an outcome from there."""
        ok = [line for line in self.lines()[after:] if line.get("status") == "ok"]
        return {line["extra"]["node"]: line["extra"] for line in ok}

    def until(self, ready, seconds=60):
        def check():
            assert self.process.poll() is None, self.story()
            return ready()

        return until(check, seconds, self.story)

    def story(self):
        return (self.folder / "err.txt").read_text() + self.out.read_text()[-2000:]


def get(address, path, token=""):
    head = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"http://{address}{path}", headers=head)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read().decode()


def listed(nodes, what):
    answer = json.loads(get(nodes.dashboard, f"/api/v0/{what}?detail=1", nodes.token))
    return answer["data"]["result"]["result"]


def gauges(nodes):
    """Lines of ours on all metrics endpoints of the cluster."""
    text = ""
    for node in listed(nodes, "nodes"):
        if port := metrics_port(nodes, node["node_id"]):
            text += get(f"{node['node_ip']}:{port}", "/metrics")
    return [line for line in text.splitlines() if line.startswith("ray_autopeft_")]


def metrics_port(nodes, node_id):
    """A node's metrics port, from the file that it leaves for Prometheus."""
    for file in nodes.folder.glob(f"*/session_latest/metrics_export_port_{node_id}"):
        return int(file.read_text())
    return 0


def test_nodes_share_nothing_are_lost_and_join(nodes, tmp_path):
    hide = [tmp_path] if may_unshare() else []
    if not hide:
        print("unshare is refused here: the second node could see the driver's folders")
    nodes.join("second", hide=hide, AUTOPEFT_NODE_DIR=str(nodes.folder / "store2"))
    driver = Driver(nodes, tmp_path)
    try:
        driver.until(lambda: len(driver.places()) == 2)
        here, there = split_places(driver, tmp_path)
        assert here["sum"] == there["sum"] == 50 * 64 * 3
        assert there["weights"] == "0102"
        assert Path(there["images"]).name == "images-0123"  # features are kept under its name
        copies = nodes.folder / "store2"
        assert there["images"].startswith(str(copies))
        assert copies.stat().st_mode & 0o777 == 0o700
        check_dashboard(nodes, driver)

        nodes.lose("second")
        driver.until(lambda: any(line.get("status") == "error" for line in driver.lines()))
        failed = next(line for line in driver.lines() if line.get("status") == "error")
        assert failed["reason"].startswith("worker died: Actor")
        driver.until(
            lambda: (
                [x["status"] for x in driver.lines() if x.get("job") == failed["job"]][-1:]
                == ["ok"]
            )
        )
        assert {"slots": 1} in driver.lines()[3:]

        mark = len(driver.lines())
        nodes.join("third", AUTOPEFT_NODE_DIR=str(nodes.folder / "store3"))
        driver.until(lambda: len(driver.places(mark)) == 2)
        (tmp_path / "stop").touch()
        assert driver.process.wait(60) == 0, driver.story()
        assert driver.lines()[-1]["done"] == len(
            {line["job"] for line in driver.lines() if line.get("status") == "ok"}
        )
        assert not list((nodes.folder / "store3" / "workers").glob("*/states/*"))
    finally:
        kill(descendants(driver.process.pid))
        driver.process.wait(20)


def split_places(driver, folder):
    """The outcome of a worker at the driver's node, and one of the other node."""
    every = driver.places().values()
    [here] = [e for e in every if e["run_dir"].startswith(str(folder))]
    [there] = [e for e in every if e is not here]
    return here, there


def check_dashboard(nodes, driver):
    """Named actors and tasks, gauges and counters, over HTTP, while the driver runs."""
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(nodes.dashboard, "/api/v0/actors")
    actors = {a["name"] for a in listed(nodes, "actors") if a["state"] == "ALIVE"}
    assert {"autopeft-slot-0", "autopeft-slot-1"} <= actors
    found = driver.until(
        lambda: [t for t in listed(nodes, "tasks") if re.match(r"\d{5}-lora-e\d$", t["name"])]
    )
    assert found
    names = ("trials", "images_per_second", "worker_memory_bytes", "prefix_hit_rate", "jobs_total")
    driver.until(lambda: all(any(n in line for line in gauges(nodes)) for n in names))
    lines = gauges(nodes)
    assert any("autopeft_trials{" in x and 'state="complete"' in x for x in lines)
    assert any("images_per_second" in x and x.endswith(" 200.0") for x in lines)
    assert any("prefix_hit_rate" in x and x.endswith(" 0.25") for x in lines)
    assert any(
        "autopeft_jobs_total{" in x and 'kind="rung"' in x and 'status="ok"' in x for x in lines
    )


def test_without_any_node_the_run_waits_and_says_so(nodes, tmp_path):
    """Ray believes that these nodes have a GPU, and the workers ask for one."""
    nodes.join("one", "--num-gpus=1", AUTOPEFT_NODE_DIR=str(nodes.folder / "gpu1"))
    driver = Driver(nodes, tmp_path, gpus=1)
    try:
        driver.until(driver.places)
        nodes.lose("one")
        driver.until(lambda: "waiting for nodes to join" in driver.story())
        assert driver.lines()[-1] == {"slots": 0}
        mark = len(driver.lines())
        nodes.join("two", "--num-gpus=1", AUTOPEFT_NODE_DIR=str(nodes.folder / "gpu2"))
        driver.until(lambda: driver.places(mark))
        (tmp_path / "stop").touch()
        assert driver.process.wait(60) == 0, driver.story()
        assert (tmp_path / "err.txt").read_text().count("waiting for nodes") == 1
    finally:
        kill(descendants(driver.process.pid))
        driver.process.wait(20)


def test_a_wrong_token_is_one_line(nodes, tmp_path):
    (tmp_path / "token").write_text("f" * 64)
    env = {**nodes.env, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    code = f"from autopeft.runners.cluster import connect\nconnect({nodes.address!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=40
    )
    assert "refuses the token" in done.stderr.splitlines()[-1]
    assert "ray get-auth-token" in done.stderr.splitlines()[-1]
