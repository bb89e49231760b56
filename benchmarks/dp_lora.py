"""DP-SGD on LoRA adapters, by Opacus: python benchmarks/dp_lora.py BASE TEXTS --epsilon 8 -o OUT.

Needs `pip install opacus`. Not part of the package:
a measured example of what differentially private fine-tuning does to the attacks.
"""

import argparse
import warnings

import torch
from opacus import PrivacyEngine
from torch.utils.data import DataLoader

from ltmia.data.reading import read_texts
from ltmia.lm.finetuning import FinetuneConfig, add_lora
from ltmia.lm.loading import LoadOptions, load_model, load_tokenizer

MAX_LENGTH, BATCH, EPOCHS, LEARNING_RATE, CLIP, DELTA = 128, 50, 10, 2e-3, 1.0, 1e-4


def main() -> None:
    """Fine-tune privately and save the adapter."""
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("texts")
    parser.add_argument("--epsilon", type=float, required=True)
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    loading = LoadOptions(dtype="float32", device="cpu")
    model, _ = load_model(options.base, loading)
    tokenizer = load_tokenizer(options.base, loading)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = tokenizer(
        list(read_texts(options.texts).texts),
        max_length=MAX_LENGTH,
        truncation=True,
        padding="max_length",
        return_tensors="pt",
    )
    data = list(zip(rows["input_ids"], rows["attention_mask"], strict=True))
    model = add_lora(model, FinetuneConfig(lora=True)).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    engine = PrivacyEngine()
    private, optimizer, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0),
        data_loader=DataLoader(data, batch_size=BATCH),
        target_epsilon=options.epsilon,
        target_delta=DELTA,
        epochs=EPOCHS,
        max_grad_norm=CLIP,
    )
    for epoch in range(EPOCHS):
        for ids, mask in loader:
            labels = ids.masked_fill(mask == 0, -100)
            loss = private(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, epsilon {engine.get_epsilon(DELTA):.2f}", flush=True)
    model.save_pretrained(options.out)


if __name__ == "__main__":
    main()
