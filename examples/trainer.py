"""Fine-tune with a Trainer, and audit the model in out/ on the tokens it was trained on: python examples/trainer.py."""

import transformers as hf
from datasets import Dataset

from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.integrations.callback import AuditCallback, AuditPlan, hold_out

out, base = "out", demo_base_path()  # put your own model and texts in their place
tokenizer = hf.AutoTokenizer.from_pretrained(base)
texts = Dataset.from_dict({"text": demo_texts().texts[:120], "speech": demo_texts().groups[:120]})
rows = texts.map(lambda row: tokenizer(row["text"], truncation=True, max_length=64), remove_columns="text")
train, held_out = hold_out(rows, share=0.5, group_column="speech")
trainer = hf.Trainer(
    hf.AutoModelForCausalLM.from_pretrained(base),
    hf.TrainingArguments(out, num_train_epochs=2, learning_rate=1e-3, report_to=[], save_strategy="no", use_cpu=True),
    data_collator=hf.DataCollatorForLanguageModeling(tokenizer, mlm=False),
    train_dataset=train,
    eval_dataset=held_out,
    processing_class=tokenizer,
)
trainer.add_callback(AuditCallback(trainer, f"{out}/audit", AuditPlan(group_column="speech", limits=["auc:0.6"])))
trainer.train()
