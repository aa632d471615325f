"""Asks people about runs of the main job, as in the paper's Table 5, and gives the table of their answers.

    python jobs/study.py serve ours=out/ours other=out/other --output out/study
    python jobs/study.py serve ours=out/ours other=out/other --protocol both --real photographs/ --output out/study
    python jobs/study.py table out/study

`serve` shows a page on this machine, http://127.0.0.1:8200 unless told otherwise, until Ctrl-C; the same command goes
on. J2b: which method's picture is the best; G2R: is this one real or generated. `--host 0.0.0.0` lets phones and
colleagues in who have the link that is printed. `table` may be called at any time. Exit codes: 0 done, 2 bad input.
"""

import argparse
import re
import sys

from refadgen.config import StudyConfig, load_config

_SETTING = re.compile(r"[a-z0-9_]+(\.[a-z_]+)+=.*")


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["serve", "table"], help="ask people, or count their answers; -h: options")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="…")
    first = parser.parse_args(words)
    # Not argparse's subcommands: they take no settings after options.
    own = argparse.ArgumentParser(prog=f"{parser.prog} {first.command}")
    if first.command == "table":
        own.add_argument("output", metavar="STUDY", help="the --output of serve: a path or s3://")
        return own.parse_args(first.rest, first)
    own.add_argument("words", nargs="+", metavar="RUN | section.field=value", help="[NAME=]FOLDER, or a setting")
    own.add_argument("--output", default="out/study", help="folder of the study, a path or s3://")
    own.add_argument("--protocol", choices=["j2b", "g2r", "both"], default="j2b", help="what is asked")
    own.add_argument("--real", help="real ads for G2R: a folder of photographs, or triplets (their split test)")
    own.add_argument("--config", help="YAML file of settings")
    own.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in")
    own.add_argument("--port", default="8200")
    arguments = own.parse_intermixed_args(first.rest, first)
    arguments.settings = [word for word in arguments.words if _SETTING.fullmatch(word)]
    arguments.runs = [word for word in arguments.words if not _SETTING.fullmatch(word)]
    if not arguments.runs:
        own.error("at least one RUN is needed: the output folder of jobs/generate_catalog.py")
    return arguments


def main(words: list[str] | None = None) -> int:
    """Runs the job. Returns the exit code."""
    arguments = parse_arguments(words)
    from refadgen.storage.store import STORE_ERRORS, Storage

    try:
        if arguments.command == "table":
            from refadgen.evaluation.study.table import write_table

            print(write_table(Storage(arguments.output)))
            return 0
        config = load_config(StudyConfig, arguments.config, arguments.settings)
        from refadgen.evaluation.study import serve  # late, for its imports take seconds
        from refadgen.evaluation.study.plan import PROTOCOLS

        protocols = PROTOCOLS if arguments.protocol == "both" else (arguments.protocol,)
        serve.serve(
            config,
            serve.StudyCommand(
                runs=arguments.runs,
                output=arguments.output,
                protocols=protocols,
                real=arguments.real,
                host=arguments.host,
                port=arguments.port,
            ),
        )
    except (ValueError, *STORE_ERRORS) as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
