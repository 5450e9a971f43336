"""The cluster files among the examples: Ray's own schema, and what our runner needs of them."""

import importlib.util
import json
import shlex
from pathlib import Path

import pytest
import yaml

from autopeft.version import __version__

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("ray_cluster.yaml", "rayjob.yaml")


def read(name):
    return yaml.safe_load((EXAMPLES / name).read_text())


def flags_are_known(command):
    """The command of an example is one of ours."""
    from typer.main import get_command

    from autopeft.cli import app

    words = shlex.split(command)
    words = words[words.index("autopeft") + 1 :]
    search = get_command(app).commands[words[0]]
    known = {flag for option in search.params for flag in option.opts}
    assert {word for word in words[1:] if word.startswith("--")} <= known
    assert "--address" in words


@pytest.mark.parametrize("name", NAMES)
def test_an_example_opens_with_its_command_and_speaks_of_privacy(name):
    text = (EXAMPLES / name).read_text()
    first = text.splitlines()[0]
    assert f"examples/{name}" in first
    for word in ("Privacy:", "RAY_USE_TLS", "token does not", "AUTOPEFT_NODE_DIR"):
        assert word in text.replace("\n# ", " ")
    assert "ray stop" not in text
    assert __version__ in text


def test_the_launcher_s_file_keeps_ray_s_schema():
    jsonschema = pytest.importorskip("jsonschema")
    spec = importlib.util.find_spec("ray")
    schema = Path(spec.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json"
    if not schema.exists():
        pytest.skip("this Ray ships no schema")
    config = read("ray_cluster.yaml")
    jsonschema.validate(config, json.loads(schema.read_text()))
    assert config["max_workers"] == len(config["provider"]["worker_ips"])
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    first = (EXAMPLES / "ray_cluster.yaml").read_text().splitlines()[0]
    flags_are_known(shlex.split(first)[-1])


def test_the_rayjob_has_one_image_a_token_and_a_driver_beside_its_files():
    job = read("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    flags_are_known(spec["entrypoint"])
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    head, [workers] = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    pods = [head["template"]["spec"], workers["template"]["spec"]]
    [images] = {tuple(c["image"] for c in pod["containers"]) for pod in pods}
    assert images[0].endswith(f":{__version__}")
    for pod in pods:
        [container] = pod["containers"]
        assert {m["name"] for m in container["volumeMounts"]} == {
            v["name"] for v in pod["volumes"]
        }
        assert container["resources"]["limits"] == container["resources"]["requests"]
    paths = {m["mountPath"] for m in pods[0]["containers"][0]["volumeMounts"]}
    words = shlex.split(spec["entrypoint"])
    for flag in ("--dataset", "--runs-dir"):
        value = words[words.index(flag) + 1]
        assert any(value == p or value.startswith(f"{p}/") for p in paths)
    # Workers ask for what a worker pod has.
    gpus = pods[1]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert float(words[words.index("--gpus-per-worker") + 1]) <= float(gpus)
