"""Compressed SASRec (modern block) on The Complete Journey.

Data, layout and argument: as `completejourney_hstu.py`. `--config.model.sasrec.block=classic` is
the post-norm block of the paper.
Hardware: 2 CPU cores; the cost was not recorded.
Quality: without counters, with model.item_bias=True and model.token_input=pooled, NDCG@10 .0547
(recent), .0532 (compressed), .0514 (full) (results/savings/completejourney). With counters, at the
size of `ablations_quick.py`, it is 0.996 [0.981, 1.012] of HSTU's
(`results/ablations/completejourney/ablations.md`).
Commands:

    python train.py --config=configs/completejourney_sasrec.py --workdir=runs/cj_sasrec
    python train.py --config=configs/completejourney_sasrec.py:full --workdir=runs/cj_sasrec_full
    python eval.py --config=configs/completejourney_sasrec.py --workdir=runs/cj_sasrec \
        --config.eval.full_workdir=runs/cj_sasrec_full --output=results/completejourney_sasrec.json
"""

from configs import completejourney_hstu
from jaxrec.config import Config

ARGUMENTS = completejourney_hstu.ARGUMENTS


def get_config(mode: str = "compressed") -> Config:
    config = completejourney_hstu.get_config(mode)
    config.model.backbone = "sasrec"
    return config
