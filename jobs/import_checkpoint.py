"""The authors' released weights become a RefAdGen folder in our layout.

    python jobs/import_checkpoint.py mp_rank_00_model_states.pt --base stable-diffusion-v1-5/stable-diffusion-v1-5 \\
        --vae stabilityai/sd-vae-ft-mse --image-encoder h94/IP-Adapter/models/image_encoder --output refadgen-released

Nothing in the file is executed, and every weight in it must have a place in our model. Exit codes: 0 done, 2 bad input.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="the DeepSpeed file, mp_rank_00_model_states.pt")
    parser.add_argument("--base", required=True, help="Stable Diffusion 1.5: a folder or hub id")
    parser.add_argument("--vae", required=True, help="the VAE: a folder or hub id")
    parser.add_argument("--image-encoder", help="the CLIP image encoder: a folder or hub id (owner/name/folder)")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="must not exist yet, or be empty")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job. Returns the exit code."""
    options = parse_arguments(arguments)
    try:
        place = _check_output(options.output)
        print(f"reading {options.file}", flush=True)
        from refadgen.model.authors_checkpoint import (
            import_checkpoint,  # late, for torch takes seconds: --help is quick
        )

        pipeline = import_checkpoint(
            options.file, base=options.base, vae=options.vae, image_encoder=options.image_encoder
        )
        print(f"writing {options.output}", flush=True)
        # A folder on the same file system, so that the rename is atomic: a killed import leaves no partial model.
        with tempfile.TemporaryDirectory(dir=place, prefix=".import-") as folder:
            pipeline.save_pretrained(Path(folder) / "model")
            os.replace(Path(folder) / "model", options.output)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    numbers = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in pipeline.components.items()
        if hasattr(part, "parameters")
    }
    print("imported " + ", ".join(f"{name} {number / 1e6:.1f} M" for name, number in numbers.items()))
    print(f"use it with: python jobs/generate_catalog.py CATALOG --model {options.output}")
    return 0


def _check_output(output: Path) -> Path:
    """The folder in which `output` can be made. Raises: ValueError, OSError."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output}: exists already; give the name of a new folder")
    parent = output.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    if not os.access(parent, os.W_OK):
        raise ValueError(f"--output {output}: {parent} is not writable")
    return parent


if __name__ == "__main__":
    sys.exit(main())
