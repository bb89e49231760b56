"""Refuses GGUF files with content that transformers ignores: the loaded model would differ from the file's."""

from pathlib import Path
from typing import Any

from gguf import GGUFReader
from transformers.integrations.gguf.utils import is_gguf_arch_supported
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from ltmia.errors import ModelError

ROPE_FACTORS = "rope_freqs.weight"
"""Tensor with factors for the frequencies of rotary positions, as in Llama 3.1 and later."""
READ_APART = ("_exps.", "output.weight")
"""Parts of tensor names that transformers reads with special rules: experts, and the head of GPT-2."""
NO_SCALING = ("none", "default")


CURE = "give the folder with safetensors that the file was made from"


def check_gguf(path: Path, model: Any) -> None:
    """Refuse a GGUF file if the loaded model lacks one of its tensors or its scaling of positions.

    Args:
        path: The file.
        model: As transformers loaded it.

    Raises:
        ModelError: If there is one; the message names the first tensor left out, or the scaling.
    """
    reader = GGUFReader(path)
    architecture = str(reader.fields["general.architecture"].contents())
    scaling = reader.fields.get(f"{architecture}.rope.scaling.type")
    said = None if scaling is None else str(scaling.contents())
    if said is not None and said not in NO_SCALING and _scales_nothing(model):
        raise ModelError(
            f"{path}: scales positions ({said}), which transformers does not read from a GGUF file; {CURE}"
        )
    if is_gguf_arch_supported(architecture):
        return  # of these, the loading report names what is left over
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    known = get_gguf_hf_weights_map(model, processor)
    left_out = [
        t.name for t in reader.tensors if t.name not in known and not any(part in t.name for part in READ_APART)
    ]
    if left_out:
        what = "factors on its rotary positions" if left_out[0] == ROPE_FACTORS else "a part of the model"
        raise ModelError(
            f"{path}: transformers leaves out {left_out[0]} ({what}; {len(left_out)} tensor(s) in all), so "
            f"what runs here would be another model; {CURE}"
        )


def _scales_nothing(model: Any) -> bool:
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    return str(rope.get("rope_type", "default")) == "default"
