"""docs/reliability.md says what was recorded, of tests that exist."""

from __future__ import annotations

import ast
import json

from benchmarks.reliability_table import PAGE, RESULTS, ROOT, ROWS, measured, page


def test_every_fault_of_the_matrix_has_its_row_and_every_row_names_tests_that_exist():
    assert [row.number for row in ROWS][:21] == [*(f"C{number}" for number in range(1, 21)), "control"]
    for test in (test for row in ROWS for test in row.tests):
        file, _, name = test.partition("::")
        functions = {
            node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, test


def test_the_page_is_made_of_the_record():
    assert PAGE.read_text(encoding="utf-8") == page(json.loads(RESULTS.read_text()))


def test_a_failed_or_missing_test_shows():
    entry = {"passed": 2, "failed": 1, "skipped": 0, "counts": {"kills survived": 1200}}
    text = measured([entry, None])
    assert text == "1,200 kills survived; 2 tests passed; **1 FAILED**; 1 not recorded yet"
