"""The results store: one folder a run, written beside its final place and renamed into it last.

A run is done when its `record.json` is there, parses, and agrees with its own digest; there are no locks, so the store
works under any engine and on network file systems. Failures are records of their own and never mask a result. Nothing
here needs torch to read, check, merge or pack.

    <study>/manifests/<digest>.json    the cells a command asked for; named by the digest of their content
    <study>/runs/<2 hex>/<run_id>/     record.json, module.safetensors, start.safetensors, head.safetensors,
                                       predictions.safetensors, port_report.json
    <study>/failures/<run_id>-<attempt>.json   given_up/: of runs whose cells were asked for with other settings since
    <study>/checkpoints/<run_id>.safetensors   of runs in training, so that a killed stack goes on where it was
    <study>/running/<run_id>.json      who has a run in hand (execution/leases.py); slurm/: what engine=slurm submitted
    <study>/hosts/<id>.json            how alike two hosts are, measured once a pair (porting/similarity.py)
    <study>/index.parquet              derived from the records and never needed: reading is faster with it
    <study>/discarded/<run_id>-<n>/    unsound run folders, moved here by `verify --discard`
    <study>/published/                 instead of runs/: records.parquet and predictions.parquet, without modules

Of a record, `schema` is the version of the protocol (part of every run's id), `format` the version of these files (1,
where it is not named; 2 has `files`, the SHA-256 and bytes of each file beside the record, and `digest`, its own).

    python -m portability.store verify|merge|pack|compact|tidy
"""

from portability.store.records import FORMAT, Result
from portability.store.results import studies
from portability.store.study import Store

__all__ = ["FORMAT", "Result", "Store", "studies"]
