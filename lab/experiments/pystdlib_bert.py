# BERT grown in all four dimensions, against the same target from scratch. About equal compute, tuned
# learning rates on both sides, three seeds, float32. Takes 1.5 hours on one thread.
settings = dict(dtype="float32")
seeds = [1, 2, 3]

_rates = dict(muon_learning_rate=[0.005, 0.01, 0.02])
contestants = {
    "from scratch": dict(config="config/pystdlib_bert_scratch.py", sweep=_rates),
    "MSG": dict(config="config/pystdlib_bert_msg.py", sweep=_rates, against="from scratch")}
