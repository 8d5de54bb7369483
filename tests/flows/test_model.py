"""The global model's file: whatever is not one is refused by the name of who wrote it (SPEC 5.4)."""

import json

import pytest

from flows.model import GlobalModel
from protocols.errors import BadMessage
from protocols.messages import COORDINATOR


@pytest.mark.parametrize("number_type", ["BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F64", "U32", "BOOL"])
def test_a_model_of_another_number_type_is_refused(number_type: str) -> None:
    sizes = {"BF16": 2, "F64": 8, "U32": 4}
    content = bytes(3 * sizes.get(number_type, 1))
    header = {"vector": {"dtype": number_type, "shape": [3], "data_offsets": [0, len(content)]}}
    text = json.dumps(header).encode()
    with pytest.raises(BadMessage, match="the model is not") as refusal:
        GlobalModel.from_bytes(len(text).to_bytes(8, "little") + text + content, parameters=3, features=0)
    assert refusal.value.party == COORDINATOR
