"""The benchmark scripts: report.py's numbers on JSON written by hand, and that peers.py runs.

Nothing here looks at how long anything took. Exit code 77: skipped, torch cannot be imported.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

try:
    import torch  # noqa: F401
except ImportError as error:
    print(f"skipped: torch cannot be imported: {error}")
    sys.exit(77)

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import report  # noqa: E402


def peer_row(peer, candidate, **values):
    return {"shape": [2, 3, 4], "peer": peer, "candidate": candidate, **values}


PEERS = {"peers": [
    peer_row("fp32", "fp32", min_ms=2.0, median_ms=2.5),
    peer_row("bf16", "bf16", min_ms=1.0, median_ms=1.0),
    peer_row("te_int8", "te_int8", min_ms=0.25, median_ms=0.5),
    peer_row("onnxruntime", "onnxruntime, spinning", min_ms=0.5, median_ms=0.75),
    peer_row("onnxruntime", "onnxruntime, not spinning", min_ms=0.375, median_ms=1.0),
    peer_row("torchao", "torchao, eager", missing="not installed"),
]}
GOOGLE = {"benchmarks": [
    {"name": f"Linear{kind}/M:2/N:3/K:4/real_time{suffix}", "run_type": run_type, "real_time": value, "time_unit": unit}
    for kind, suffix, run_type, value, unit in (
        ("Fp32", "", "iteration", 6.0, "ms"), ("Fp32", "", "iteration", 4.0, "ms"),
        ("Fp32", "", "iteration", 5.0, "ms"), ("Fp32", "_mean", "aggregate", 1.0, "ms"),
        ("Bf16", "", "iteration", 1500.0, "us"), ("Int8", "", "iteration", 500000.0, "ns"))
] + [{"name": "ScopeEntry", "run_type": "iteration", "real_time": 1.0, "time_unit": "us"}]}

CUDA = {"rows": [
    {"section": "peers", "shape": [2, 3, 4], "name": "bf16", "cool_us": 100.0, "hot_us": 120.0},
    {"section": "peers", "shape": [2, 3, 4], "name": "te_int8", "cool_us": 50.0, "hot_us": 48.0},
    {"section": "peers", "shape": [2, 3, 4], "name": "torchao int8", "missing": "NotImplementedError: M <= 16"},
    {"section": "peers", "shape": [2, 3, 4], "name": "again", "cool_us": 101.0, "hot_us": 121.0},
]}


class Report(unittest.TestCase):
    def table(self, content, statistic="min"):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "times.json")
            path.write_text(json.dumps(content))
            return report.read(path, statistic)

    def test_peers_count_by_their_fastest(self):
        self.assertEqual(report.markdown(self.table(PEERS)).splitlines(), [
            "| M, N, K | fp32 | bf16 | te_int8 | ONNX Runtime | torchao | of fp32 | of bf16 | of ONNX Runtime | of torchao |",
            "|---|---|---|---|---|---|---|---|---|---|",
            "| 2, 3, 4 | 2.00 | 1.00 | 0.25 | 0.38 | not installed | 8.0 | 4.00 | 1.50 | - |",
        ])
        self.assertEqual(self.table(PEERS, "median")[2, 3, 4]["onnxruntime"], 0.75)

    def test_a_missing_variant_does_not_hide_the_other(self):
        for rows in (PEERS["peers"][3:4], [peer_row("onnxruntime", "another", missing="not installed")]):
            PEERS_BOTH = {"peers": [*rows, *PEERS["peers"][3:4]]}
            self.assertEqual(self.table(PEERS_BOTH)[2, 3, 4]["onnxruntime"], 0.5)
            self.assertEqual(self.table({"peers": PEERS_BOTH["peers"][::-1]})[2, 3, 4]["onnxruntime"], 0.5)

    def test_google_benchmark(self):
        self.assertEqual(report.markdown(self.table(GOOGLE)).splitlines(), [
            "| M, N, K | fp32 | bf16 | te_int8 | of fp32 | of bf16 |",
            "|---|---|---|---|---|---|",
            "| 2, 3, 4 | 4.00 | 1.50 | 0.50 | 8.0 | 3.00 |",
        ])
        self.assertEqual(self.table(GOOGLE, "median")[2, 3, 4]["fp32"], 5.0)

    def test_cuda(self):
        self.assertEqual(report.markdown(self.table(CUDA, "hot")).splitlines(), [
            "| M, N, K | bf16 | te_int8 | torchao INT8 | of bf16 | of torchao INT8 |",
            "|---|---|---|---|---|---|",
            "| 2, 3, 4 | 120 | 48.00 | refuses | 2.50 | - |",
        ])
        for content, statistic in ((CUDA, "min"), (PEERS, "hot")):
            with self.assertRaisesRegex(SystemExit, "expected --statistic"):
                self.table(content, statistic)

    def test_other_json_is_refused(self):
        for content in ({}, {"benchmarks": []}, {"peers": []}):
            with self.assertRaisesRegex(SystemExit, "expected the JSON of"):
                self.table(content)

    def test_plot(self):
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            self.skipTest("matplotlib is not installed")
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "plot.png")
            report.draw(self.table(PEERS), path, "")
            self.assertEqual(path.read_bytes()[1:4], b"PNG")


class Peers(unittest.TestCase):
    def run_peers(self, folder, library):
        """peers.py on sizes that take no time; nothing but torch can be imported."""
        output = pathlib.Path(folder, "peers.json")
        hidden = "import sys; sys.modules.update(dict.fromkeys(['onnx', 'onnxruntime', 'torchao']))"
        start = f"{hidden}; sys.path.insert(0, {str(BENCHMARKS)!r}); import peers; peers.main()"
        subprocess.run([sys.executable, "-c", start, "--rounds", "1", "--shapes", "17,16,32", "--library", library,
                        "--json", output], check=True, stdout=subprocess.DEVNULL)
        return report.read(output)[17, 16, 32]

    def test_every_candidate_is_named(self):
        with tempfile.TemporaryDirectory() as folder:
            row = self.run_peers(folder, os.environ["TE_INT8_LIBRARY"])
            self.assertEqual({peer for peer, value in row.items() if isinstance(value, float)},
                             {"fp32", "bf16", "te_int8"})
            self.assertEqual(row["onnxruntime"], row["torchao"])
            self.assertEqual(row["torchao"], "not installed")
            row = self.run_peers(folder, "nowhere.so")
            self.assertEqual(row["te_int8"], "not built")


if __name__ == "__main__":
    unittest.main(verbosity=2)
