# frontier.py with 36 times the parameters, for one GPU: the target has 6 layers x 384 (10.6M parameters
# without embeddings). Bytes of English text, bfloat16. The batch is 32 times as large, so that runs have
# about as many steps. The one decay is frontier.py's best. Bring your own text, at least 80 MB:
#
#     python data/text/prepare.py --input=FILE_OR_FOLDER --out=data/english
settings = dict(
    data_dir="data/english", block_size=512, head_dim=64, batch_tokens=65536, micro_batch=128,
    sampling="random",
    n_embd=384, n_head=6, n_inner=1536, optimizer="muon", learning_rate=2e-3, warmup_iters=30,
    eval_interval=1000, eval_seqs=2048, log_interval=100, dtype="bfloat16", device="cuda")

target = "6 x 384"
ladder = {"2 x 384": dict(n_layer=2), "3 x 384": dict(n_layer=3), "6 x 384": dict(n_layer=6)}

budgets = [2.5, 5, 7.5]
grown_at = [5]
decays = [0.55]
rates = dict(muon_learning_rate=[0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16])
sweep_at = 2.5
seeds = [1, 2]

_six = dict(n_layer=6)
grown = {
    "zero output at 80 %": dict(start="2 x 384", growths=[(0.8, _six)], operator="zero_output"),
    "MSG at 2 %": dict(start="2 x 384", growths=[(0.02, _six)], operator="msg"),
    "zero output at 65 %": dict(start="2 x 384", growths=[(0.65, _six)], operator="zero_output"),
    "MSG at 80 %": dict(start="2 x 384", growths=[(0.8, _six)], operator="msg"),
    "stack at 45 %": dict(start="2 x 384", growths=[(0.45, _six)], operator="stack"),
}
