"""The keys that a run logs to W&B and TensorBoard, with their meanings and their sources in `metrics.jsonl`.

W&B groups charts by a key's first word. tests/training/test_loggers.py compares this table with the keys that a run
logs, and the dashboard in launch/wandb uses only keys from this table. A part in <> stands for a name, such as that of
a stage or a source. Values of an update are those at its end. `time/token`, which includes the update, is the x axis.
"""

from dataclasses import dataclass

from rotary_foundry.recipe.schema import all_knobs, all_metrics

X_AXIS = "time/token"


@dataclass(frozen=True)
class Metric:
    """One key, or one key for each name."""

    name: str
    meaning: str
    record: str | None = None  # its key in a line of metrics.jsonl; None: logged by the code that computes it


METRICS = (
    Metric(
        "loss/train",
        "nats per predicted token, mean over the update; in a multi-task stage the mean of its tasks by their blocks",
        "loss",
    ),
    Metric("loss/stage/<stage>", "the same by stage; after the n-th rollback the stage's name ends in ` (n)`"),
    *(
        Metric(f"loss/{metric.name}", metric.meaning, metric.name)
        for metric in all_metrics().values()
        if metric.name != "loss"
    ),
    Metric("loss/spike_score", "robust deviations above the median of up to 128 earlier updates", "loss_spike_score"),
    Metric("recipe/stage", "the stage's number, from 1"),
    Metric("recipe/lr", "learning rate", "lr"),
    Metric("recipe/weight_decay", "of the matrices", "weight_decay"),
    Metric("recipe/rows", "batch size in rows", "rows"),
    Metric("recipe/row_length", "tokens per row", "row_length"),
    *(Metric(f"recipe/{name}", knob.meaning, name) for name, knob in all_knobs().items()),
    Metric("throughput/tokens_per_sec", "real tokens, all devices together", "tokens_per_second"),
    Metric("throughput/device/mfu", "share of the devices' bf16 peak; not logged if that is unknown", "mfu"),
    Metric(
        "throughput/slowest_rank",
        "the rank with the longest data wait and forward passes",
        "slowest_rank",
    ),
    Metric("throughput/slowest_lag", "that rank's time for them, divided by the ranks' median, minus 1", "slowest_lag"),
    Metric("time/step", "seconds per update, without evaluation and checkpoints", "step_seconds"),
    Metric("time/data", "seconds per update of waiting for data", "data_seconds"),
    Metric(X_AXIS, "the token clock: slots consumed, including this update", "token"),
    Metric("memory/peak_gb", "of the device (on CPU: the process), in 1e9 bytes, on the rank with most", "memory_gb"),
    Metric("optim/l2_norm/<kind>/global", "norm of grad, param, moment or update, over all parameters"),
    Metric(
        "optim/clipping/max",
        "the largest divisor that clipping applied to a learning rate or gradients; 1: nothing was clipped",
    ),
    # of a multi-task stage
    Metric("task/loss/<task>", "mean over the task's predicted tokens or examples of the update", "task_loss"),
    Metric("task/right/<task>", "share of these that are right", "task_right"),
    Metric("task/units/<task>", "number of these", "task_units"),
    Metric("task/grad_norm/<task>", "norm of the gradient of the task's mean loss, without heads", "task_grad_norm"),
    Metric("task/weight/<task>", "weight of this gradient in the update", "task_weight"),
    Metric("task/cosine/<task>", "cosine to the update's gradient; only min_norm and projected", "task_cosine"),
    Metric(
        "task/cosine_estimate/<task>",
        "the same with a standard error of up to 0.004; only the other rules",
        "task_cosine_estimate",
    ),
    Metric("eval/<stage>/<metric>/<task>", "held-out rows of a task at the end of a multi-task stage"),
    Metric("data/real_tokens", "tokens of the update, without padding", "real_tokens"),
    Metric("data/asked/<source>", "share that the stage's mixture asks for", "asked"),
    Metric("data/drawn/<source>", "share of the tokens drawn in the stage so far", "drawn"),
    *(
        Metric(f"eval/<stage>/{metric.name}", f"held-out rows at the end of the stage: {metric.meaning}")
        for metric in all_metrics().values()
    ),
    Metric("rollback/count", "rollbacks so far", "rollbacks"),
    # Composer's own keys, which it always logs
    Metric(
        "loss/train/total",
        "as loss/train, but at the token clock of the update's start, and in a multi-task stage over all examples",
    ),
    Metric("metrics/<stage>/<metric>", "as eval/<stage>/…, but in a multi-task stage over all examples"),
    Metric("metrics/<stage>/<metric>/<task>", "as eval/<stage>/…"),
    *(
        Metric(f"time/{name}", "Composer's count")
        for name in ("batch", "epoch", "sample", "batch_in_epoch", "sample_in_epoch", "token_in_epoch")
    ),
    Metric("trainer/device_train_microbatch_size", "rows per forward pass on one device"),
)


def logged(record: dict) -> dict[str, float]:
    """Return the values of a line of `metrics.jsonl` for the loggers, without unknown ones."""
    values: dict[str, float] = {}
    for metric in METRICS:
        value = record.get(metric.record)
        if isinstance(value, dict):
            prefix = metric.name.partition("<")[0]
            values |= {f"{prefix}{name}": share for name, share in value.items()}
        elif value is not None:
            values[metric.name] = value
    return values
