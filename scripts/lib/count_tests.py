"""Counts test cases in the files that ctest --output-junit wrote, and names the entries that failed.

One ctest entry runs many cases, so the counts come from each program's own summary (Catch2, unittest);
an entry without one counts as one case. The last line is 'N passed, N failed, N skipped'.
"""
import re
import sys
import xml.etree.ElementTree as ET


def count(status, output):
    """(passed, failed, skipped) of one ctest entry."""
    catch2 = re.findall(r"^test cases: (.*)$", output, re.MULTILINE)
    catch2_all = re.findall(r"^All tests passed \(\d+ assertions? in (\d+) test cases?\)", output, re.MULTILINE)
    unittest = re.search(r"^Ran (\d+) tests? in .*\n+(?:OK|FAILED)(?: \((.*)\))?", output, re.MULTILINE)
    passed = failed = skipped = 0
    if catch2:
        # '3 | 1 passed | 1 skipped | 1 failed as expected', the last of which is a pass.
        for part in catch2[-1].split("|")[1:]:
            number, word = part.strip().split(maxsplit=1)
            passed += int(number) * (word in ("passed", "failed as expected"))
            failed += int(number) * (word == "failed")
            skipped += int(number) * (word == "skipped")
    elif catch2_all:
        passed = int(catch2_all[-1])
    elif unittest:
        numbers = {word: int(n) for word, n in re.findall(r"(\w+)=(\d+)", unittest[2] or "")}
        failed, skipped = numbers.get("failures", 0) + numbers.get("errors", 0), numbers.get("skipped", 0)
        passed = int(unittest[1]) - failed - skipped
    elif status == "run":
        passed = 1
    elif status == "skip":
        skipped = 1
    if status == "fail" and failed == 0:
        failed = 1  # a crash, a time-out, or a failure outside every test case
    return passed, failed, skipped


def entries(path):
    """(name, counts) of each ctest entry in one file of results."""
    try:
        cases = list(ET.parse(path).getroot().iter("testcase"))
    except (OSError, ET.ParseError) as error:
        yield f"{path}: expected ctest's results, got {error}", (0, 1, 0)
        return
    if not cases:
        yield f"{path}: expected tests, got none", (0, 1, 0)
    for case in cases:
        status = case.get("status")
        if status == "notrun":
            # Skipped by its own exit code or output, or its program could not be started.
            reason = case.find("skipped")
            own = reason is not None and reason.get("message", "").startswith("SKIP_")
            status = "skip" if own else "fail"
        yield case.get("name"), count(status, case.findtext("system-out") or "")


def main(paths):
    totals = [0, 0, 0]
    for path in paths:
        for name, counts in entries(path):
            totals = [a + b for a, b in zip(totals, counts)]
            if counts[1]:
                print(f"failed: {name} ({counts[1]} of {sum(counts)})")
    print("{} passed, {} failed, {} skipped".format(*totals))
    return 1 if totals[1] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
