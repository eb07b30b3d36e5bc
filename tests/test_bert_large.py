"""Bert-large itself, 336M parameters, grown through every stage of its config. Slow: use --slow."""
import resource

import pytest
import torch
from runs import ROOT
from test_grow import batch, difference

from grow import grow, set_mask, sizes_of
from model import GROWABLE, MODELS
from run.arguments import from_args


@pytest.mark.slow
def test_bert_large_from_start_to_target():
    config = from_args([str(ROOT / "config" / "bert_large_msg.py")])
    cls, _ = MODELS["bert"]
    torch.manual_seed(0)
    model = cls(config.model_config(30528)).double().eval()  # no dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    data = batch("bert", model.config)
    data = {k: v[:, :64] if v.dim() > 1 else v for k, v in data.items()}
    data["targets"] = torch.where(data["attn_mask"], data["idx"], -1)
    model(**data)[1].backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for stage, sizes in zip(config.stages, config.sizes()[1:]):
        with torch.no_grad():
            before = [*model(**data)[0]]
            model, optimizer = grow(model, optimizer,
                                    **{k: v for k, v in stage.items() if k in GROWABLE})
            after = [*model(**data)[0]]
        after[2] = after[2][:, :before[2].size(1)]  # what was there of the pooled output
        before[0], after[0] = before[0][data["attn_mask"]], after[0][data["attn_mask"]]
        assert difference(before, after) < 1e-12, stage
        set_mask(model, 1)
        assert sizes_of(model.config) == sizes
    assert model.num_params() == 336_226_108 + 6 * 1025  # the vocabulary is padded by 6 ids
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 16 * 2**20  # KiB: 16 GiB
