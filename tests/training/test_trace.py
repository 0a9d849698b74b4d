"""What `data trace` says of a real run is what that recorded."""

from rotary_foundry.data_prep.inspection.trace import trace

from .runs import records


def test_updates_of_every_stage_of_a_real_run_are_traced(undisturbed):
    """A trace is refused unless its rows and masks have the digest that the run's two ranks recorded."""
    lines = records(undisturbed)
    last_of_stage = {line["stage"]: line for line in lines}
    for line in [lines[0], *last_of_stage.values()]:
        traced = trace(undisturbed, line["batch"])
        assert (traced.stage, len(traced.rows), traced.row_length) == (line["stage"], line["rows"], line["row_length"])
        assert traced.token == line["token"] - line["rows"] * line["row_length"]
    assert len(last_of_stage) == 3
