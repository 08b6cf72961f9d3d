"""The table of an evaluation, as text."""

from __future__ import annotations

from dd2_fast.cli.table import evaluation_table


def test_rows_are_named_and_in_the_order_of_their_numbers() -> None:
    """Whatever order a file has them in."""
    keys = ("stage1", "one_step_jacobi_11", "one_step_17", "one_step_9", "one_step_jacobi_1",
            "real", "one_step", "teacher", "one_step_jacobi_3")  # fmt: skip
    told = {"rows": {key: {"fd": 1.0} for key in keys}, "reconstruction_mse": 0, "codes_used": 1}
    lines = evaluation_table(told).splitlines()[2:-1]
    assert [line.rpartition("1.00")[0].strip() for line in lines] == [
        *("real", "teacher", "one step", "one step + 8 teacher's", "one step + 16 teacher's"),
        *("one step + 1 pass", "one step + 3 passes", "one step + 11 passes", "stage 1, one step"),
    ]
