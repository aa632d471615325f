"""The authors' released weights become a RefAdGen folder in our layout.

    python jobs/import_checkpoint.py mp_rank_00_model_states.pt --base stable-diffusion-v1-5/stable-diffusion-v1-5 \\
        --vae stabilityai/sd-vae-ft-mse --image-encoder h94/IP-Adapter/models/image_encoder --output refadgen-released
    python jobs/import_checkpoint.py --from-hub --output refadgen-released

The second line finds all four by their ids, shows their sizes, and fetches them; the same line again resumes. Each may
be given another id, `owner/name[/folder][@revision]`, or a path. Nothing is fetched with --dry-run.

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
    parser.add_argument("file", nargs="?", metavar="FILE", help="the DeepSpeed file, mp_rank_00_model_states.pt")
    parser.add_argument("--from-hub", action="store_true", help="download the authors' parts where no other is named")
    parser.add_argument("--dry-run", action="store_true", help="with --from-hub: show what would be fetched")
    parser.add_argument("--base", help="Stable Diffusion 1.5: a folder or hub id")
    parser.add_argument("--vae", help="the VAE: a folder or hub id")
    parser.add_argument("--image-encoder", help="the CLIP image encoder: a folder or hub id (owner/name/folder)")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="must not exist yet, or be empty")
    options = parser.parse_args(arguments)
    required = {"FILE": options.file, "--base": options.base, "--vae": options.vae}
    if not options.from_hub and (absent := [name for name, value in required.items() if value is None]):
        parser.error(f"the following arguments are required: {', '.join(absent)}; or --from-hub, which downloads them")
    if options.dry_run and not options.from_hub:
        parser.error("--dry-run: only with --from-hub")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job. Returns the exit code."""
    options = parse_arguments(arguments)
    file, base, vae, image_encoder = options.file, options.base, options.vae, options.image_encoder
    try:
        _check_output(options.output)
        if options.from_hub:
            found = _from_hub(options)
            if found is None:
                return 0
            file, base, vae, image_encoder = found
        print(f"reading {file}", flush=True)
        from refadgen.model.authors_checkpoint import (
            import_checkpoint,  # late, for torch takes seconds: --help is quick
        )

        pipeline = import_checkpoint(file, base=base, vae=vae, image_encoder=image_encoder)
        print(f"writing {options.output}", flush=True)
        place = options.output.absolute().parent
        place.mkdir(parents=True, exist_ok=True)
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


def _from_hub(options: argparse.Namespace) -> list[Path] | None:
    """Local paths of checkpoint, base, VAE and image encoder; None after a dry run. Raises: ValueError, OSError."""
    from refadgen.model.authors_hub import COMPONENTS, check_disk, fetch, resolve, table

    given = {
        "checkpoint": options.file,
        "base": options.base,
        "vae": options.vae,
        "image_encoder": options.image_encoder,
    }
    parts = [resolve(name, given[name] or default) for name, default in COMPONENTS.items()]
    print(table(parts), flush=True)
    check_disk(parts, options.output)
    if options.dry_run:
        return None
    return [fetch(part, lambda line: print(line, flush=True)) for part in parts]


def _check_output(output: Path) -> None:
    """Raises: ValueError where `output` cannot be made."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output}: exists already; give the name of a new folder")
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not os.access(parent, os.W_OK):
        raise ValueError(f"--output {output}: {parent} is not writable")


if __name__ == "__main__":
    sys.exit(main())
