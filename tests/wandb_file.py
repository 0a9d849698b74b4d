"""W&B's own file of an offline run, read back."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import DataStore


@dataclass
class Recorded:
    """What an offline run's file holds."""

    run: wandb_internal_pb2.RunRecord
    arguments: list[str]
    step_metrics: dict[str, str] = field(default_factory=dict)  # by pattern
    config: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    artifacts: list[wandb_internal_pb2.ArtifactRecord] = field(default_factory=list)
    exit_code: int | None = None
    kinds: list[str] = field(default_factory=list)  # of all records, in order


def read_back(path: Path) -> Recorded:
    store, recorded = DataStore(), Recorded(None, [])
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record.FromString(data)
        kind = record.WhichOneof("record_type")
        recorded.kinds.append(kind)
        match kind:
            case "run":
                recorded.run = record.run
                _update(recorded.config, record.run.config)
            case "config":
                _update(recorded.config, record.config)
            case "environment":
                recorded.arguments += record.environment.args
            case "metric" if record.metric.glob_name:
                recorded.step_metrics[record.metric.glob_name] = record.metric.step_metric
            case "history":
                items = record.history.item
                recorded.history.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
            case "artifact":
                recorded.artifacts.append(record.artifact)
            case "exit":
                recorded.exit_code = record.exit.exit_code
    return recorded


def _update(config: dict, record: wandb_internal_pb2.ConfigRecord) -> None:
    config |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.update}
