"""The freezer and the sieve of the page on levers, classes from outside of the package, train as printed there."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "levers.md"


def test_the_freezer_and_the_sieve_of_the_page_train():
    _, *blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    names = {}
    exec(compile("\n".join(blocks), "levers.md", "exec"), names)
    records = names["result"].epochs
    assert records[-1].frozen and len({record.samples for record in records}) > 1
    assert {"freeze", "sieve"} <= {event.kind for record in records for event in record.events}
