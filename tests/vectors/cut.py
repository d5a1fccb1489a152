"""Cut the full reference vectors to the part that the repository carries.

    python tests/vectors/cut.py ../shared/reference

Arrays that no test reads go, and samples that repeat others. The rest is as it was, except that
maps which tests compare at 5e-3 or 8e-3 are stored in float16 (off by at most 5e-4).
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SAMPLES = [0, 2]  # sample 1 has no confidence: its curves are its activation map
POSITIONS = [0, 1, 2, 5, 6, 76]  # start, content of both samples, padding
BIASES = [0, 2, 3]  # confidences: none, some, most
VILOURAS = (
    *(f"A.{case}." for case in ("phrase64", "word64", "onestep64", "latent16")),
    *("B.", "C.", "D.alphas", "D.timesteps", "D.sd_alphas"),
)
DAAM = ("attention", "raw", "global", "word", "expand", "prompt", "merge_indices")


def cut_unet(source: Path) -> None:
    """Write the small U-Net, its inputs, and what the published code made of them."""
    spec = json.loads((source / "unet.json").read_text())
    spec |= {"tokens": [spec["tokens"][b] for b in SAMPLES], "positions": POSITIONS}
    (HERE / "unet.json").write_text(json.dumps(spec, indent=1) + "\n")
    stored = np.load(source / "unet_inputs.npz")
    weights = sorted(k for k in stored.files if k.startswith("w."))
    inputs = {k: stored[k][:, SAMPLES] for k in ("lat_gt", "lat_tx")}
    inputs |= {"ehs": stored["ehs"][SAMPLES], "timesteps": stored["timesteps"]}
    inputs["weights"] = np.concatenate([stored[k].ravel() for k in weights])  # sorted by name
    np.savez_compressed(HERE / "unet_inputs.npz", **inputs)
    stored = np.load(source / "unet_outputs.npz")
    outputs = {
        k: stored[k] for k in stored.files if k.startswith(("heat", "mask", "box", "metric"))
    }
    outputs["token_mean"] = stored["token_mean"][SAMPLES][:, POSITIONS]
    outputs["layer_mean_token1"] = stored["layer_mean_token1"][SAMPLES[:1]]
    names = ("activation", "interaction", "confidence", "linear", "quadratic", "mixture")
    for new, old in enumerate(SAMPLES):
        for name in (*names, "image_bias", "text_bias"):
            outputs[f"{name}_{new}"] = smaller(stored[f"{name}_{old}"])
    np.savez_compressed(HERE / "unet_outputs.npz", **outputs)


def cut_bbm(source: Path) -> None:
    """Write the pairs of biases, their mean activation map, and the three curves."""
    stored, kept = np.load(source / "bbm.npz"), {}
    for new, old in enumerate(BIASES):
        for name in ("image_bias", "text_bias", "confidence", "interaction"):
            kept[f"{name}_{new}"] = smaller(stored[f"{name}_{old}"])
        kept[f"activation_{new}"] = stored[f"activation_{old}"].mean((0, 1, 2), dtype=np.float32)
        for curve in ("linear", "quadratic", "mixture"):
            kept[f"{curve}_{new}"] = smaller(stored[f"{curve}_{old}"])
    np.savez_compressed(HERE / "bbm.npz", **kept)


def cut_daam(source: Path) -> None:
    """Write DAAM's small case; of the attention only the conditional half, which DAAM keeps."""
    stored, kept = np.load(source / "daam" / "daam_open.npz"), {}
    for key in stored.files:
        if key.startswith("A.mini.") and key.split(".")[2] in DAAM:
            half = len(stored[key]) // 2 if ".attention." in key else 0
            kept[key] = stored[key][half:] if half else stored[key]
    np.savez_compressed(HERE / "daam.npz", **kept)


def cut_vilouras(source: Path) -> None:
    """Write aggregation (of the attention the phrase's row), post-processing, metrics and times.

    What needs the small U-Net's weights, 1.5 MB, stays in the full vectors.
    """
    stored = np.load(source / "vilouras" / "reference_open.npz")
    kept = {key: stored[key] for key in stored.files if key.startswith(VILOURAS)}
    for layer in ("03", "04", "06", "07"):
        kept[f"A.attention.{layer}"] = stored[f"A.attention.{layer}"][:, 1:]
    np.savez_compressed(HERE / "vilouras.npz", **kept)


def cut_g2d(source: Path) -> None:
    """Write what the authors' functions of G2D made, without masks at 256 pixels."""
    stored = np.load(source / "g2d" / "reference_open.npz")
    kept = {k: stored[k] for k in stored.files if not k.endswith("/256")}
    np.savez_compressed(HERE / "g2d.npz", **kept)


def smaller(array: np.ndarray) -> np.ndarray:
    """A float32 map as float16; anything else as it is."""
    if array.dtype != np.float32 or array.ndim < 2:
        return array
    assert array.min() >= 0 and array.max() < 2
    return array.astype(np.float16)


if __name__ == "__main__":
    for cut in (cut_unet, cut_bbm, cut_daam, cut_vilouras, cut_g2d):
        cut(Path(sys.argv[1]))
