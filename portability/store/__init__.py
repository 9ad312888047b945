"""The results store: a folder for each run, written beside its final place and renamed into it last.

A run is done when its `record.json` is there, parses, and agrees with its own digest; there are no locks, so
the store works under any engine and on network file systems. Failures are files of their own and never mask a
result. Nothing here needs torch to read, check, merge or pack.

    <study>/manifests/<digest>.json    the cells a command asked for; named by the digest of their content
    <study>/runs/<2 hex>/<run_id>/     record.json, module.safetensors, start.safetensors, head.safetensors,
                                       predictions.safetensors, port_report.json
    <study>/failures/<run_id>-<attempt>.json   failed attempts; given_up/: of runs whose cells were asked for
                                       with other settings since
    <study>/checkpoints/<run_id>.safetensors   runs in training, so that a killed stack goes on where it was
    <study>/running/<run_id>.json      leases: who trains a run (execution/leases.py), and what is told of
                                       runs in training (tracking/live.py)
    <study>/slurm/                     files of the jobs that engine=slurm submitted
    <study>/hosts/<id>.json            how alike two hosts are, a file for each pair (porting/similarity.py)
    <study>/wandb/                     files of Weights & Biases, and what was sent there (tracking/)
    <study>/index.parquet              derived from the records and never needed: reading is faster with it
    <study>/discarded/<run_id>-<n>/    unsound run folders, moved here by `verify --discard`
    <study>/published/                 instead of runs/: records, cells and predictions as Parquet files

Of a record, `schema` is the version of the protocol (part of every run's id), `format` the version of these
files (1, where it is not named; 2 has `files`, the SHA-256 and bytes of each file beside the record, and
`digest`, its own).

    store.py      Store: everything that other packages read and write; published.py: of a packed study
    records.py    one run: its record, its digest, its files and their faults
    atomic.py     writing that a kill cannot leave half done; what it leaves all the same
    index.py      many records quickly; tables.py: Parquet files with checksums
    manifests.py  cells; failures.py: failed attempts; host_pairs.py: similarity of hosts
    admin/        portability store verify|merge|pack|compact|tidy
"""

from portability.store.records import FORMAT, Result
from portability.store.store import Store, studies

__all__ = ["FORMAT", "Result", "Store", "studies"]
