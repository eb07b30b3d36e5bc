# frontier.py at 80 tokens per parameter with a larger target: 6 layers x 96 (0.66M parameters without
# embeddings), on 53M bytes of English text, each seen about once. The learning rate and the decay are the
# best of 6 x 64 at 80. Bring your own text, at least 100 MB:
#
#     python data/text/prepare.py --input FILES --out=data/english --val FILE
settings = dict(
    data_dir="data/english", block_size=128, head_dim=32, batch_tokens=2048, micro_batch=16,
    n_embd=96, n_head=3, n_inner=384, optimizer="muon", learning_rate=2e-3, warmup_iters=30,
    eval_interval=5000, eval_seqs=8192, log_interval=100, dtype="float32",
    compile="none")

target = "6 x 96"
ladder = {"6 x 96": dict(n_layer=6, rate=0.01)}
starts = {"2 x 96": dict(n_layer=2, rate=0.01)}

budgets = [80]
grown_at = [80]
decays = [0.55]
rates = dict(muon_learning_rate=[0.01])
sweep_at = 80
seeds = [1, 2, 3]

grown = {"early, MSG": dict(start="2 x 96", growths=[(0.02, dict(n_layer=6))], operator="msg", rate=0.01)}
