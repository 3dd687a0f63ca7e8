"""Models of other libraries, stage by stage, against the masked dense copy: `make test-models`.

Not collected by a plain run of the tests: it needs the packages of the extra "models".
"""

from __future__ import annotations

import pytest
from models_sweep.exceptions import EXCEPTIONS
from models_sweep.stages import STAGES
from models_sweep.zoo import ZOO

pytestmark = pytest.mark.filterwarnings("default")  # other libraries' warnings are theirs


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ZOO)
def test_model(name: str, stage: str, record_property) -> None:
    record_property("model", name)
    record_property("stage", stage)
    known = EXCEPTIONS.get((name, stage))
    if known is None:
        record_property("found", STAGES[stage](ZOO[name]))
        return
    with pytest.raises(known.error, match=known.message):
        STAGES[stage](ZOO[name])
    record_property("reason", known.reason)


def test_every_exception_belongs_to_a_model() -> None:
    assert {name for name, _ in EXCEPTIONS} <= ZOO.keys() and {stage for _, stage in EXCEPTIONS} <= STAGES.keys()
