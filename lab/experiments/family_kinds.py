# Other families than family.py's, on the same tokens: sizes x 1.5 and x 4, and width beside depth. Rate and
# decay of all are those that family.py tuned for 2, 4 and 8 layers; the shares of the trunk and of the
# decays are its "masks", but for x 4, which gets longer after its one growth.
from lab.experiments import family as _f

settings = dict(_f.settings, eval_seqs=4096)
target = "8 x 32"
ladder = {
    **{f"{n} x 32": dict(n_layer=n, tokens=1, rate=0.02) for n in (2, 4, 6, 9)},
    "4 x 48": dict(n_layer=4, n_embd=48, n_inner=192, tokens=1, rate=0.02),  # as many weights as the target
    "8 x 32": dict(n_layer=8, rate=0.02)}

budgets = [20]
decays = [0.35]
rates = dict(muon_learning_rate=[0.02])
sweep_at = 20
seeds = [11, 12, 13]
save_every = 48

_shares = dict(tokens=20, trunk=[0.65, 0.2, 0.25], decay=[0.35, 0.35, 0.42])
families = {
    "x 1.5": dict(_shares, members=["4 x 32", "6 x 32", "9 x 32"]),
    "x 2, depth, then width": dict(_shares, members=["2 x 32", "4 x 32", "4 x 48"]),
    "x 4": dict(members=["2 x 32", "8 x 32"], tokens=20, trunk=[0.65, 0.35], decay=[0.35, 0.42]),
}
