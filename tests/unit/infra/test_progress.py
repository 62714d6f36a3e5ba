"""Progress is a plain log when nobody sits at a terminal."""

import io

from infra.demo.progress import Now, Progress


def test_without_a_terminal_there_is_one_line_a_stage() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress.show(Now(stage="people talk", left_s=90, answers=3, approval=0.25))
        progress.show(Now(stage="people talk", left_s=89, answers=4))
        progress.show(Now(stage="learning", left_s=60, step=2, serving="default@2"))
        progress.say("a line that stays")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "stage: people talk  left: 1.5 min  answers: 3" in lines[0]
    assert "approval: 25%" in lines[0]
    assert "serving: default@2" in lines[1]
    assert "\x1b" not in stream.getvalue()
