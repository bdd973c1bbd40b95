"""What the scripts share that train an example several times with several seeds."""

import argparse
import concurrent.futures
import csv
import pathlib
import shlex
import statistics
import subprocess
import sys


def parse(doc, add_arguments):
    """The arguments, and what follows -- in `program_arguments`. Makes the folder of --out."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    add_arguments(parser)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1)
    words = sys.argv[1:] + ([] if "--" in sys.argv else ["--"])
    end = words.index("--")
    arguments = parser.parse_args(words[:end])
    arguments.program_arguments = words[end + 1:]
    arguments.out.mkdir(parents=True, exist_ok=True)
    return arguments


def run(command, path, result):
    """The rows of the CSV `result` that the command writes, its output in PATH.log. Not done again where PATH.command holds it."""
    done, log = path.with_suffix(".command"), path.with_suffix(".log")
    if not done.exists() or done.read_text() != shlex.join(command):
        done.unlink(missing_ok=True)
        with open(log, "w") as output:
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
        if code != 0:
            raise RuntimeError(f"{shlex.join(command)}: expected exit status 0, got {code}; see {log}")
        done.write_text(shlex.join(command))
    with open(result) as file:
        return list(csv.DictReader(file))


def run_all(run_one, kinds, arguments):
    """{kind: [run_one(kind, seed) of each seed]}, so many --jobs at a time."""
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        runs = {kind: [pool.submit(run_one, kind, seed) for seed in arguments.seeds] for kind in kinds}
        return {kind: [future.result() for future in futures] for kind, futures in runs.items()}


def mean_and_deviation(values):
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def write_csv(path, header, rows):
    part = path.with_suffix(".part")
    with open(part, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    part.replace(path)


def tell(text, plot, out, name):
    """Prints the table, writes it to table.md and what `plot(pyplot)` draws to NAME."""
    (out / "table.md").write_text(text + "\n")
    print(text)
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    matplotlib.use("Agg")  # no display needed
    import matplotlib.pyplot
    plot(matplotlib.pyplot).savefig(out / name, dpi=150)
