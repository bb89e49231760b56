"""What an audit says it read of long texts is what the models took."""

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.finetuning.tiny import TinyConfig, build_base
from ltmia.models.pair import Pair
from ltmia.report.words import unread
from plain_loops import TOKENIZER


def small(seed):
    shape = TinyConfig(model_type="gpt2", vocab_size=300, hidden_size=32, n_layers=2, n_heads=2)
    model = build_base(shape, seed=seed)
    assert model.config.max_position_embeddings < 2048
    return model.eval()


def test_no_more_is_claimed_than_the_models_take(tmp_path):
    pair = Pair(target=small(1), reference=small(2), tokenizer=TOKENIZER)
    limit = pair.target.config.max_position_embeddings
    members = [f"Crate {i} of the cargo holds a letter. " * 200 for i in range(4)]
    nonmembers = [f"Snow on pier {i}. " * 200 for i in range(4)]
    for asked, read, cure in (
        (2048, limit, "The models accept no longer texts"),
        (64, 64, "A larger `max_length` reads more"),
    ):
        config = AuditConfig(attacks="loss", max_length=asked)
        found = audit(pair, members, nonmembers, tmp_path / str(asked), config=config).results
        assert (found.settings["max_length"], found.settings["max_positions"]) == (read, limit)
        assert f"Only the first {read} tokens of each text were read. 8 of 8" in unread(found)
        assert cure in unread(found)
