"""The shipped TripoSplat, or untrained networks of its shapes where it is not shipped."""

import json
from pathlib import Path

from safetensors.torch import save_file

from generation.lift.triposplat.config import CONFIG_NAME
from generation.lift.triposplat.features import DINO_NAME, VAE_NAME
from generation.weights.store import EMBEDDED


def embedded_with_triposplat(folder: Path) -> Path:
    """Returns a folder like `EMBEDDED` that has TripoSplat: that one, or `folder` filled."""
    if (EMBEDDED / "triposplat").is_dir():
        return EMBEDDED
    from scripts.benchmarks.random_triposplat import untrained, untrained_encoders
    from scripts.train_embedded.recipe import SplatPlan

    for path in EMBEDDED.iterdir():
        (folder / path.name).symlink_to(path)
    plan, own = SplatPlan(), folder / "triposplat"
    model, encoders = untrained(plan.config), untrained_encoders(plan.encoders)
    model.save_pretrained(own)
    content = plan.config.as_dict() | plan.encoders.model_dump(mode="json")
    (own / CONFIG_NAME).write_text(json.dumps(content))
    for name, network in ((DINO_NAME, encoders.dino), (VAE_NAME, encoders.vae)):
        state = network.state_dict()
        save_file({key: x.contiguous() for key, x in state.items()}, own / name)
    return folder
