"""Settings of a run on a table for which nobody gave a configuration."""

from jaxrec.config import Config


def table_config() -> Config:
    """Settings that suit most tables of events; their data replaces them. Not validated."""
    config = Config()
    config.data.dataset = "table"
    config.data.min_item_events = 5
    config.layout.mode = "compressed"
    config.layout.segment_size = 50
    config.layout.tokens = 4
    config.layout.max_segments = 4
    config.model.backbone = "sasrec"
    config.model.width = 64
    config.model.layers = 2
    config.model.heads = 2
    config.model.item_bias = True
    config.model.token_input = "pooled"
    config.loss.kind = "sampled_softmax"
    config.train.learning_rate = 2e-3
    config.train.patience = 8
    return config
