"""Checks the channels' files of an output again, as they lie there or as a CDN serves them; needs no Ray.

    python jobs/lint_channels.py out/demo
    python jobs/lint_channels.py s3://shop/ads --lint-url 'https://cdn.example/ads/{uri}' --text

Many CDNs strip metadata, and with it the mark that an image is generated. Files that are not clean are named in
`channels/lint.csv` of the output. Exit codes: 0, 1 where a file is not clean, 2 for a wrong setting or output.
"""

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refadgen.generation.lint_files import TextReader


def main(words: list[str] | None = None) -> int:
    """Lints an output's files. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Check the files that an output has for channels.")
    parser.add_argument("output", help="the --output of jobs/generate_catalog.py: a path or s3://")
    parser.add_argument("--lint-url", metavar="TEMPLATE", help="where the files are served, as output.public_url")
    parser.add_argument("--text", action="store_true", help="look for text where a channel forbids it (extra ocr)")
    parser.add_argument("--channels-file", help="rules of your own channels, as the setting channels_file")
    parser.add_argument("--limit", type=int, help="only the first N files")
    parser.add_argument("settings", nargs="*", metavar="section.field=value", help="fetch.…=…")
    arguments = parser.parse_intermixed_args(words)

    from refadgen.config import GenerateConfig, load_config  # late: a wrong word is refused at once
    from refadgen.generation.channel_files import CLEAN
    from refadgen.generation.lint_files import LINT_FILE, FileLint
    from refadgen.storage.store import STORE_ERRORS, Storage

    url = [f"output.public_url={arguments.lint_url}"] if arguments.lint_url else []
    try:
        config = load_config(GenerateConfig, None, [*url, *arguments.settings])
        text, why_not = _text_reader(asked=arguments.text)
        lint = FileLint(
            Storage(arguments.output),
            config.fetch,
            url=arguments.lint_url,
            channels_file=arguments.channels_file,
            text=text,
        )
        counts = lint.run(arguments.limit)
    except (ValueError, *STORE_ERRORS) as error:
        print(f"lint_channels: {error}", file=sys.stderr)
        return 2
    for (channel, found), number in sorted(counts.items()):
        print(f"{number:8} {channel}: {found}")
    if why_not:
        print(f"not checked: text beside the product ({why_not})")
    bad = sum(number for (_, found), number in counts.items() if found != CLEAN)
    print(f"{counts.total()} files, {bad} not clean" + (f": {arguments.output}/{LINT_FILE}" if bad else ""))
    return 1 if bad else 0


def _text_reader(*, asked: bool) -> "tuple[TextReader | None, str]":
    """The reader of text, or None; and why there is none."""
    if not asked:
        return None, "--text looks for it"
    from refadgen.config import DatasetConfig
    from refadgen.dataset.content import TextFinder

    try:
        finder = TextFinder(DatasetConfig().filter)
    except ValueError as error:
        return None, str(error).partition(": ")[2]
    return (lambda picture, mask: finder.find(picture, mask).words), ""


if __name__ == "__main__":
    sys.exit(main())
