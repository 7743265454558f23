"""Make docs/reliability.md: fault | promise | test | measured, from the last recorded test run.

python -m pytest -p tests.faults.record tests      # part of `make test-all`; writes benchmarks/results/reliability.json
python benchmarks/reliability_table.py
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"


@dataclass(frozen=True)
class Row:
    """One fault of the matrix."""

    number: str
    fault: str
    promise: str
    tests: tuple[str, ...]  # file::function


def _of(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/{file}.py::test_{name}" for name in names)


ROWS: tuple[Row, ...] = (
    Row(
        "C1",
        "`kill -9` at a random moment, and at each named failpoint of each file",
        "resumed with `--resume`, every file equals the uninterrupted run's byte for byte; nothing temporary is left",
        _of(
            "faults/test_kill",
            "killed_at_every_failpoint_one_after_the_other_equals_uninterrupted",
            "killed_at_each_failpoint_of_each_file_equals_uninterrupted",
            "twenty_fresh_processes_killed_at_random_equal_uninterrupted",
            "twenty_runs_killed_at_random_equal_uninterrupted",
            "after_a_kill_two_checkpoints_are_left_and_one_of_them_is_whole",
        ),
    ),
    Row(
        "C2",
        "killed again while resuming; killed between two folds",
        "the same",
        _of(
            "faults/test_kill",
            "killed_three_times_at_random_also_while_resuming_equals_uninterrupted",
            "twenty_runs_killed_again_and_again_equal_uninterrupted",
            "killed_between_two_folds_equals_uninterrupted",
        ),
    ),
    Row(
        "C3",
        "temporary directory, or results, on another filesystem",
        "the same",
        _of("faults/test_kill", "another_filesystem_for_temporary_files_changes_nothing"),
    ),
    Row(
        "C4",
        "disk full; a limit on the size of files",
        "exit 1 with path, bytes needed and bytes free; the last checkpoint is whole; with room, the run goes on",
        _of(
            "faults/test_disk",
            "a_full_disk_ends_the_run_with_path_and_bytes_and_with_room_it_goes_on",
            "a_disk_that_fills_up_at_any_point_of_a_run_loses_nothing",
            "a_limit_on_the_size_of_files_is_told_like_a_full_disk",
        )
        + _of("lit_ppo/test_checkpoints", "a_full_disk_leaves_the_old_file_and_names_path_and_bytes"),
    ),
    Row(
        "C5",
        "a checkpoint cut at 0, 1, 30, 90, 99.9 %",
        "one warning, and on from the checkpoint before it",
        _of(
            "faults/test_damage",
            "a_run_whose_newest_checkpoint_is_cut_and_whose_manifest_is_lost_goes_on_from_the_one_before",
            "a_run_with_any_cut_checkpoint_or_manifest_resumes_to_the_uninterrupted_result",
        )
        + _of("lit_ppo/test_checkpoints", "a_truncated_checkpoint_is_stepped_over_with_one_warning"),
    ),
    Row(
        "C6",
        "one flipped bit, in every entry of the archive",
        "never loaded",
        _of(
            "faults/test_damage",
            "no_flipped_bit_in_any_entry_of_a_real_checkpoint_is_loaded",
            "no_flipped_bit_in_chosen_weights_is_loaded_even_without_a_manifest",
        ),
    ),
    Row(
        "C7",
        "manifest lost, damaged, or naming a missing file",
        "rebuilt from the files' names",
        _of(
            "lit_ppo/test_checkpoints",
            "a_lost_or_damaged_manifest_is_rebuilt_from_the_names",
            "a_manifest_that_names_a_missing_file_steps_back",
            "when_no_checkpoint_is_whole_the_run_stops_instead_of_starting_over",
        ),
    ),
    Row(
        "C8",
        "cache entry flipped, cut, of an old layout",
        "computed anew with one warning; the result is that of a run without cache",
        _of("faults/test_damage", "a_run_with_a_spoilt_cache_computes_anew_and_gives_the_same")
        + _of("datamodules/test_cache", "an_entry_of_another_key_or_layout_is_rebuilt"),
    ),
    Row(
        "C9",
        "many processes in one cache, some of them killed",
        "no torn read, no deadlock, valid entries",
        _of("faults/test_races", "eight_processes_race_for_a_cache_while_others_are_killed_in_it")
        + _of("datamodules/test_cache", "eight_racing_writers_leave_valid_entries_and_read_no_torn_one"),
    ),
    Row(
        "C10",
        "two runs in one results/<seed>",
        "the second exits 2 and names process, host and time; the first is not disturbed; a dead owner's lock is taken",
        _of("faults/test_races", "a_second_run_in_the_same_folder_is_refused_and_the_first_one_is_not_disturbed")
        + _of(
            "lit_ppo/test_run_lock",
            "a_second_run_is_refused_with_the_owners_details",
            "the_lock_of_a_killed_run_is_taken_over",
            "processes_that_race_for_a_stale_lock_enter_one_at_a_time",
        ),
    ),
    Row(
        "C11",
        "wall clock back an hour, forward a year, other time zones; file times from the future",
        "nothing changes: sequence numbers order, the monotonic clock measures",
        _of(
            "faults/test_signals_and_clocks",
            "a_wall_clock_that_goes_back_or_leaps_changes_nothing",
            "a_checkpoint_file_from_the_future_is_not_taken_for_the_newest",
        ),
    ),
    Row(
        "C12",
        "read-only results, fold or cache directory (without root's capabilities)",
        "results: an error before training; cache: one warning, and on without it",
        _of(
            "faults/test_disk",
            "a_read_only_results_directory_is_an_error_before_training",
            "a_read_only_fold_directory_ends_the_run_and_is_not_swallowed",
            "a_read_only_cache_is_warned_about_and_the_run_goes_on_without_it",
        ),
    ),
    Row(
        "C13",
        "SIGTERM, SIGINT, SIGHUP; a second one",
        "saves after the iteration and exits 143, 130, 129; the second leaves at once; both resume exactly",
        _of(
            "faults/test_signals_and_clocks",
            "a_signal_saves_and_leaves_with_its_code_and_the_resume_equals_uninterrupted",
            "a_second_signal_leaves_at_once_with_every_file_whole",
        ),
    ),
    Row(
        "C14",
        "NaN or infinity in loss, gradient, observation, advantage",
        "stops before the optimizer step; no checkpoint holds it; what was good is kept",
        _of("faults/test_numbers_and_memory", "a_number_that_is_none_stops_the_run_before_the_optimizer_step"),
    ),
    Row(
        "C15",
        "memory runs out: of the host (RLIMIT_AS), of Python, of the device (raised)",
        "exit 1 with the settings that lower it; the last checkpoint stays; nothing is lowered unasked",
        _of(
            "faults/test_numbers_and_memory",
            "memory_that_runs_out_names_the_knobs_and_leaves_the_last_checkpoint",
        ),
    ),
    Row(
        "C16",
        "one of two ranks dies or hangs",
        "every process ends within the timeout, with a failure",
        _of("faults/test_ranks", "when_one_rank_dies_or_hangs_every_process_ends_within_the_timeout"),
    ),
    Row(
        "C17",
        "settings, bars or code changed before a resume",
        "exit 2 with every difference; `--allow-mismatch` goes on, and run.json and the report say so",
        _of(
            "faults/test_resume_rules",
            "a_resume_with_other_settings_or_code_is_refused_and_every_difference_listed",
            "other_bars_are_refused",
            "allow_mismatch_goes_on_and_leaves_a_record_in_run_and_report",
        ),
    ),
    Row(
        "C18",
        "a finished, or early-stopped, run resumed",
        "exit 0, no file is rewritten",
        _of(
            "faults/test_resume_rules",
            "a_finished_run_resumes_to_nothing_and_no_file_is_rewritten",
            "a_finished_run_that_had_stopped_early_resumes_to_nothing",
        ),
    ),
    Row(
        "C19",
        "resumed with another device, processor, number of threads or ranks",
        "allowed, and labelled not bit-identical",
        _of(
            "faults/test_resume_rules",
            "a_resume_on_another_machine_is_allowed_and_labelled_not_bit_identical",
            "what_decides_the_numbers_is_refused_and_what_may_change_the_last_bits_is_labelled",
        )
        + _of("integration/test_two_ranks", "what_two_ranks_wrote_can_be_resumed_by_one_which_says_so"),
    ),
    Row(
        "C20",
        "files of an earlier release; of a later one",
        "read; or the message says which version is needed",
        _of("faults/test_releases", "the_run_of_an_earlier_release_can_be_read_and_its_policy_decides_as_it_did")
        + _of("lit_ppo/test_checkpoints", "a_newer_schema_says_which_version_is_needed"),
    ),
    Row(
        "control",
        "one item of the state lost, item by item",
        "the comparison of C1 sees it: a resume without it is not equal",
        _of(
            "faults/test_control",
            "a_resume_from_the_same_state_written_again_is_equal",
            "a_resume_without_one_item_of_its_state_is_not_equal",
        ),
    ),
    Row(
        "W1",
        "a worker is killed (`kill -9`) in a fold",
        "the fold is done again; every file equals the run in one process byte for byte; no process stays",
        _of("faults/test_workers", "a_worker_killed_in_a_fold_costs_that_fold_again_and_no_byte"),
    ),
    Row(
        "W2",
        "the driver of workers is killed",
        "its workers end; resumed with another number of workers, the same bytes",
        _of("faults/test_workers", "a_driver_killed_leaves_nobody_and_resumes_with_another_number_of_workers"),
    ),
    Row(
        "W3",
        "a fold raises in a worker",
        "exit 1 with its error; the folds before it are kept; resumed, the same bytes",
        _of("faults/test_workers", "a_fold_that_raises_ends_the_run_with_its_error_and_the_rest_is_kept"),
    ),
    Row(
        "W4",
        "SIGTERM, Ctrl-C with workers",
        "workers save; exit 143, 130; no process stays; resumed in one process, the same bytes",
        _of("faults/test_workers", "a_signal_saves_what_workers_have_ends_them_and_the_resume_equals_uninterrupted"),
    ),
    Row(
        "W5",
        "one of two nodes of a cluster is gone",
        "its folds are done again on the other; the same bytes",
        _of("faults/test_workers", "a_node_that_is_gone_costs_its_folds_again_and_no_byte"),
    ),
    Row(
        "W6",
        "Ray's object store is full; and so is the disk behind it",
        "Ray moves objects to disk, the same bytes; exit 1 with Ray's words, and with room, resumed, the same bytes",
        _of(
            "faults/test_workers",
            "a_full_object_store_spills_and_costs_no_byte",
            "a_full_object_store_on_a_full_disk_ends_the_run_with_rays_words_and_it_goes_on",
        ),
    ),
    Row(
        "B1",
        "bar files of ten kinds with one to three random defects (bits, bytes, lines, nasty values)",
        "read, or refused with the file's name: no other error, no hang, no price that the file does not hold",
        _of(
            "datamodules/test_bars_fuzz",
            "damaged_files_raise_only_our_error_and_never_pass_a_wrong_price",
            "a_million_damaged_files_or_ten_minutes_of_them",
        ),
    ),
    Row(
        "B2",
        "valid bars in any dialect; each mistake of the bar-file matrix",
        "read back equal; refused with line, evidence and remedy",
        _of(
            "datamodules/test_bars_dialects",
            "the_dialect_reads_as_the_same_bars",
            "any_valid_bars_written_in_any_dialect_read_back_equal",
        )
        + _of(
            "datamodules/test_bars_refused",
            "a_file_in_doubt_is_refused_with_line_evidence_and_remedy",
            "bytes_that_are_no_text_are_refused_by_what_they_look_like",
        ),
    ),
    Row(
        "B3",
        "a file of 10,000,000 rows",
        "read with a peak of at most 6 times its numbers",
        _of("datamodules/test_bars_fuzz", "ten_million_rows_need_at_most_six_times_their_numbers"),
    ),
    Row(
        "B4",
        "a configuration with an unknown key, a wrong type, sizes that fit no fold, a device that is not there",
        "exit 2 with the key's name and a way out; nothing is written",
        _of(
            "security/test_configuration_errors",
            "a_mistake_ends_with_exit_code_2_its_name_and_a_way_out",
            "a_file_is_read_as_strictly_as_flags",
            "a_file_that_is_no_configuration_is_refused",
        ),
    ),
    Row(
        "L1",
        "a planted look at the future: whole-file scaler, centred window, fill in the same bar, selection on test",
        "`lit-ppo audit` finds it",
        _of(
            "lit_ppo/test_audit",
            "a_scaler_of_the_whole_file_is_caught",
            "a_centred_window_is_caught_and_named",
            "a_fill_in_the_same_bar_is_caught",
            "a_leak_behind_the_scaler_is_caught_by_the_actions",
            "an_account_marked_at_the_coming_fill_is_caught",
            "selection_on_test_is_caught_by_the_rows_read",
            "training_that_depends_on_test_bars_is_caught_by_its_weights",
            "a_validation_that_reaches_into_test_is_caught",
            "null_controls_expose_a_clairvoyant_feature",
        ),
    ),
    Row(
        "L2",
        "markets in which nothing can be learned",
        "an edge is shown at the rate of chance",
        _of("lit_ppo/test_audit", "without_an_edge_the_rate_of_rejections_is_the_level"),
    ),
    Row(
        "S1",
        "checkpoints, arrays and configurations that would run code",
        "refused before anything of theirs runs",
        _of(
            "security/test_pickles",
            "a_checkpoint_that_runs_code_is_refused_by_every_command",
            "a_pickled_array_in_a_run_folder_is_not_loaded",
        )
        + _of(
            "security/test_class_paths",
            "a_class_path_outside_the_allowed_packages_is_refused_before_it_is_imported",
            "yaml_tags_that_make_objects_are_refused",
        ),
    ),
    Row(
        "S2",
        "names that lead out of the results, or are markup or terminal commands",
        "refused, or shown as text",
        _of(
            "security/test_names",
            "a_message_shows_escape_sequences_instead_of_sending_them",
            "a_seed_is_a_number_and_cannot_lead_out_of_the_results",
            "a_run_folder_that_is_a_link_is_not_written_through",
        )
        + _of("lit_ppo/test_report_browser", "hostile_names_are_inert"),
    ),
    Row(
        "R1",
        "the same seed again: logging, progress bar, validation, cache on or off; another process",
        "the same bytes; with another number of threads within the stated tolerance",
        _of(
            "integration/test_reproducible",
            "the_same_seed_gives_the_same_bytes_whatever_only_watches",
            "validation_changes_nothing_but_what_is_written_about_it",
            "the_cache_changes_nothing_filled_or_read",
            "a_second_run_gives_the_same_bytes_and_global_generators_are_neither_used_nor_moved",
            "another_number_of_threads_stays_within_the_tolerance",
        ),
    ),
)

HEAD = """# What a run withstands

Generated by `benchmarks/reliability_table.py` from `benchmarks/results/reliability.json`, which `make test-all` writes.
*Measured* is what the recorded tests did, all of it without a loss: a test that failed is shown as FAILED, one that was
not recorded as such. Rows C1-C20 are the fault matrix; W is workers, B bad input, L look-ahead, S security,
R reproducibility.

**Equal, byte for byte** means every file of the run's folder: all checkpoints (weights, optimizer, generators, state of
every callback) and their manifests, `selected.ckpt`, `metrics.jsonl`, `out_of_sample.csv`, `trades.csv`, the fills of
the test bars, and the ledger. Left out is only what tells the time (`timing.jsonl`, `run.json`, `report.html`,
`optimization_summary.json`, `training_state.json`, the ledger's `seconds`) and `config.yaml`, which names the results
directory. After a damaged checkpoint (C5) the later ones have other numbers and the same bytes.
Same machine, versions and number of threads, on the CPU.

The runs are real `lit-ppo walk-forward` processes on a synthetic market: three folds of four PPO iterations, a
checkpoint after each. Most are forked from a process that has imported torch already, so that kills fall on the run;
"fresh processes" are not. A kill is SIGKILL; the power was not cut.
"""


def measured(entries: list[dict[str, Any] | None]) -> str:
    """Counts of a row, added over its tests, and what did not pass."""
    counts: dict[str, int] = {}
    for entry in entries:
        for name, number in (entry or {}).get("counts", {}).items():
            counts[name] = counts.get(name, 0) + number
    ran = [entry for entry in entries if entry is not None]
    parts = [f"{number:,} {name}" for name, number in counts.items()]
    passed, failed, skipped = (sum(entry[key] for entry in ran) for key in ("passed", "failed", "skipped"))
    parts.append(f"{passed} test{'s' if passed != 1 else ''} passed")
    parts += [f"**{failed} FAILED**"] * bool(failed) + [f"{skipped} skipped"] * bool(skipped)
    missing = len(entries) - len(ran)
    parts += [f"{missing} not recorded yet"] * bool(missing)
    return "; ".join(parts)


def page(recorded: dict[str, Any]) -> str:
    """The text of docs/reliability.md."""
    tests = recorded["tests"]
    lines = [HEAD, "| | Fault | Promise | Test | Measured |", "|---|---|---|---|---|"]
    for row in ROWS:
        files: dict[str, list[str]] = {}
        for test in row.tests:
            file, _, name = test.partition("::")
            files.setdefault(file, []).append(name.removeprefix("test_").replace("_", " "))
        named = "; ".join(f"`{file}`: {', '.join(names)}" for file, names in files.items())
        found = measured([tests.get(test) for test in row.tests])
        lines.append(f"| {row.number} | {row.fault} | {row.promise} | {named} | {found} |")
    commits = sorted({str(entry["commit"])[:10] for entry in tests.values()})
    cpu = recorded["machine"]["cpu"]
    lines += ["", f"Recorded at commit {', '.join(commits) or 'none yet'}, on {cpu}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(json.loads(RESULTS.read_text())), encoding="utf-8")
