"""The model card of an adapter folder: what it is, on what, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.backbones.catalog import OWN
from autopeft.methods.adapted import Adapted


def card(adapted: Adapted, ours: Mapping[str, Any], library: str) -> str:
    """The model card.

    Args:
        adapted: the trained adapter.
        ours: ``autopeft.json``.
        library: ``peft`` where peft alone can load the folder, else ``autopeft``.
    """
    candidate, name = adapted.candidate, adapted.network.facts.name
    lines = "".join(f"- {line}\n" for line in ours.get("license", ()))
    thresholds = ", ".join("none" if t is None else f"{t:.4g}" for t in ours["thresholds"])
    given = f', weights="{ours["weights"]}"' if ours["weights"] else ""
    files = sorted({(o["file"], o["sha256"]) for o in ours["methods_from"].values()})
    needed = "".join(f"- Needs the method's file {f}, sha256 `{sha}`\n" for f, sha in files)
    register = "".join(f'autopeft.register_methods("{f}")\n' for f, _ in files)
    door = f"import autopeft\n{register}" if files else ""
    init = ""
    if ours.get("init"):
        init = (
            "- Its backbone has the adapter in `init/` folded in: move the folder as a whole; "
            "peft alone would leave it out\n"
        )
    return f"""---
base_model: timm/{name}
library_name: {library}
tags: [autopeft, {candidate.method}]
---

# {candidate.title}

**Research use only. Not a medical device:** not for diagnosis, not evaluated for clinical use.

- Backbone: {name}, {ours["backbone"]["image_size"]} px, sha256 of the frozen weights
  `{ours["backbone"]["sha256"]}`
- Classes ({ours["kind"]}): {", ".join(ours["classes"])}
- Thresholds: {thresholds or "none fitted"}
- Images are made square by `{ours["fit"]}`
- Trained parameters: {adapted.trainable_params:,} ({adapted.adapter_bytes:,} bytes)
- Fingerprint: `{candidate.fingerprint}`
{init}{needed}
```python
{door}from autopeft import load_adapter

model = load_adapter("FOLDER"{given})
model.predict(["image.png"])
```
{_peft_usage(adapted, ours) if library == "peft" else ""}{"## License" if lines else ""}

{lines}"""


def _peft_usage(adapted: Adapted, ours: Mapping[str, Any]) -> str:
    """How to load the folder with peft alone."""
    facts = adapted.network.facts
    size = f", img_size={facts.image_size}" if facts.family == "vit" else ""
    weights = (
        f"the weights of `{ours['weights']}`" if ours["weights"] else "its pretrained weights"
    )
    own = "import autopeft.backbones.nano  # makes the backbone known to timm\n"
    return f"""
Or with peft alone, on the timm model with {weights}:

```python
{own if facts.name == OWN else ""}base = timm.create_model(
    "{facts.name}", pretrained={not ours["weights"]}, num_classes={len(ours["classes"])}{size}
)
model = peft.PeftModel.from_pretrained(base, "FOLDER").eval()  # takes normalized pixels
```
"""
