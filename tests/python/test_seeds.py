"""The scripts that train with several seeds, on a program that trains nothing."""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"

# Appends a letter to the file "runs" beside it; --fail is its only mistake.
PROGRAM = """#!{python}
import pathlib, sys
options = dict(zip(sys.argv[1:], sys.argv[2:]))
pathlib.Path(__file__).with_name("runs").open("a").write("r")
if "--fail" in sys.argv:
    sys.exit("no such thing")
"""
FASHION = PROGRAM + """
out = pathlib.Path(options["--out"])
out.mkdir(exist_ok=True)
seed = int(options["--seed"])
base = {{"resnet": 94, "vit": 91}}[options["--model"]]
rows = [("full precision", "full precision", base + seed), ("full precision", "INT8", base), ("QAT", "full precision", base), ("QAT", "INT8", base + seed)]
(out / "compare.csv").write_text("trained,evaluated,test_accuracy\\n" + "".join(",".join(map(str, row)) + "\\n" for row in rows))
"""
RECIPES = PROGRAM + """
loss = {{"none": 1.0, "qat": 1.5}}[options["--recipe"]] + 0.25 * int(options["--seed"])
pathlib.Path(options["--csv"]).write_text(f"tokens,val_loss,wer,tokens_per_second,peak_mb\\n10,{{2 * loss}},9,100,5\\n20,{{loss}},{{8 * loss}},300,7\\n")
"""


class Seeds(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.out = self.folder / "out"

    def start(self, script, program, *arguments):
        path = self.folder / "program"
        path.write_text(program.format(python=sys.executable))
        path.chmod(0o755)
        return subprocess.run([sys.executable, BENCHMARKS / script, path, "--out", self.out, *arguments],
                              capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})

    def runs(self):
        return len((self.folder / "runs").read_text())

    def test_fashion(self):
        done = self.start("fashion_seeds.py", FASHION, "--seeds", "1", "3", "--jobs", "2", "--", "--size", "large")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual((self.out / "table.md").read_text(), done.stdout)
        self.assertEqual(done.stdout.splitlines()[2:7], [
            "| ResNet | full precision | full precision | 96.00 | 1.41 |  |  |",
            "| ResNet | full precision | INT8 | 94.00 | 0.00 | -2.00 | 1.41 |",
            "| ResNet | QAT | full precision | 94.00 | 0.00 | -2.00 | 1.41 |",
            "| ResNet | QAT | INT8 | 96.00 | 1.41 | +0.00 | 0.00 |",
            "| ViT | full precision | full precision | 93.00 | 1.41 |  |  |",
        ])
        rows = (self.out / "accuracies.csv").read_text().splitlines()
        self.assertEqual(rows[0], "model,seed,trained,evaluated,test_accuracy")
        self.assertEqual(len(rows), 1 + 2 * 2 * 4)
        self.assertIn("vit,3,QAT,INT8,94.0", rows)

    def test_runs_are_not_done_again(self):
        arguments = ["fashion_seeds.py", FASHION, "--models", "vit", "--seeds", "1"]
        first = self.start(*arguments)
        self.assertEqual(self.start(*arguments).stdout, first.stdout)
        self.assertEqual(self.runs(), 1)
        self.start(*arguments, "--", "--epochs", "2")
        self.assertEqual(self.runs(), 2)

    def test_a_run_that_fails_is_named(self):
        for _ in range(2):  # and not taken for done
            failed = self.start("fashion_seeds.py", FASHION, "--models", "vit", "--seeds", "1", "--", "--fail")
            self.assertNotEqual(failed.returncode, 0)
            self.assertRegex(failed.stderr, r"--fail: expected exit status 0, got 1; see .*vit_1\.log")
        self.assertEqual((self.out / "vit_1.log").read_text(), "no such thing\n")
        self.assertEqual(self.runs(), 2)

    def test_recipes(self):
        done = self.start("recipe_seeds.py", RECIPES, "--recipes", "none", "qat", "--seeds", "1", "3")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.splitlines()[2:], [
            "| full precision | 1.5000 | 0.3536 | +0.0000 | 200 | 7 |",
            "| QAT | 2.0000 | 0.3536 | +0.5000 | 200 | 7 |",
        ])

    def test_several_metrics_and_jobs(self):
        done = self.start("recipe_seeds.py", RECIPES, "--recipes", "none", "qat", "--seeds", "1", "3", "--metrics", "wer", "val_loss", "--jobs", "2")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.splitlines()[2:], [
            "| full precision | 12.00 | 2.83 | +0.00 | 1.5000 | 0.3536 | +0.0000 |  | 7 |",
            "| QAT | 16.00 | 2.83 | +4.00 | 2.0000 | 0.3536 | +0.5000 |  | 7 |",
        ])
        self.assertEqual((self.out / "table.csv").read_text().splitlines()[:3], [
            "recipe,seed,wer,val_loss,tokens_per_second,peak_mb", "none,1,10.0,1.25,200.0,7.0", "none,3,14.0,1.75,200.0,7.0"])

    def test_without_full_precision_there_is_no_difference(self):
        done = self.start("recipe_seeds.py", RECIPES, "--recipes", "qat", "--seeds", "1")
        self.assertIn("| QAT | 1.7500 | 0.0000 |  | 200 | 7 |", done.stdout)

    def test_plots(self):
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            self.skipTest("matplotlib is not installed")
        for script, program, more, name in (("fashion_seeds.py", FASHION, [], "accuracies.png"),
                                            ("recipe_seeds.py", RECIPES, ["--recipes", "none", "qat"], "curves.png")):
            self.assertEqual(self.start(script, program, *more, "--seeds", "1", "2").returncode, 0)
            self.assertEqual((self.out / name).read_bytes()[1:4], b"PNG")


if __name__ == "__main__":
    unittest.main(verbosity=2)
