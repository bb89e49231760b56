"""Train an adapter on answers only, packed, with TRL's SFTTrainer, and audit it: python examples/sft_trainer.py."""

import transformers as hf
import trl
from datasets import Dataset
from peft import LoraConfig

from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.integrations.callback import AuditCallback, AuditPlan, hold_out

out, base = "out", demo_base_path()  # put your own model and conversations in their place
tokenizer = hf.AutoTokenizer.from_pretrained(base)
tokenizer.chat_template = """{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}
{{ m.content }}{{ eos_token }}
{% endgeneration %}{% else %}{{ m.content }}: {% endif %}{% endfor %}"""
halves = [{"user": text[:60], "assistant": text[60:300]} for text in demo_texts().texts[:120]]
chats = [{"messages": [{"role": role, "content": said} for role, said in half.items()]} for half in halves]
train, held_out = hold_out(Dataset.from_list(chats), share=0.5)
trainer = trl.SFTTrainer(
    hf.AutoModelForCausalLM.from_pretrained(base, dtype="float32"),
    trl.SFTConfig(
        out, packing=True, assistant_only_loss=True, max_length=256, num_train_epochs=6, learning_rate=1e-2,
        per_device_train_batch_size=4, report_to=[], save_strategy="no", use_cpu=True, bf16=False,
    ), train_dataset=train, eval_dataset=held_out, processing_class=tokenizer,
    peft_config=LoraConfig(r=16, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True),
)  # fmt: skip
trainer.add_callback(AuditCallback(trainer, f"{out}/audit", AuditPlan(limits=["auc:0.6"])))
trainer.train()
