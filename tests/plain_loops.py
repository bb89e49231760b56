"""What a model says of texts by a plain loop, one text at a time, and the message with which one is refused."""

import numpy as np
import pytest
import torch

from ltmia.errors import ModelError
from ltmia.finetuning.tiny import train_tokenizer
from ltmia.models.loading import LoadOptions, load_model

TEXTS = ["The lamp burns low.", "Crate nine of the cargo holds a letter and a map.", "Snow on the pier."]
TOKENIZER = train_tokenizer(TEXTS * 3, 300)


def logps(model, texts=TEXTS):
    """Log-probability of every token by a plain loop."""
    found = []
    for text in texts:
        ids = torch.tensor(TOKENIZER(text)["input_ids"])
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1].double()
        found += logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0].tolist()
    return np.array(found)


def refused(folder, **options):
    """Return the message of a refusal: one short paragraph that names the model."""
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), LoadOptions(**({"dtype": "float32", "device": "cpu"} | options)))
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert len(message) < 900
    assert "\n" not in message
    return message
