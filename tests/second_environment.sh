#!/usr/bin/env bash
# The newest transformers and peft, without adapters, in an environment of their own (.venv-newest), and the tests of what
# must work there: the wheel in an environment that held nothing, from an empty folder; and, in the checkout, peft's methods,
# adapter folders, hosts, the port command, a study. `make test-system` calls it.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv-newest
python=$venv/bin/python
# whose versions follow from those of transformers and peft; all others are those of constraints.txt
free="transformers|peft|adapters|accelerate|tokenizers|huggingface_hub|hf-xet|datasets|fsspec|httpx|httpcore|evaluate"
if [ ! -f $venv/.ready ] || [ pyproject.toml -nt $venv/.ready ] || [ constraints.txt -nt $venv/.ready ]; then
  "${PYTHON:-python3}" -m venv $venv
  grep -vE "^($free)==" constraints.txt > $venv/constraints.txt
  $python -m pip install --quiet --constraint $venv/constraints.txt torch==2.13.0
  $python -m pip install --quiet --constraint $venv/constraints.txt . "transformers>=5,<6" pytest pytest-xdist
  touch $venv/.ready
fi
rm -rf build/lib
$python -m pip install --quiet --no-deps --force-reinstall .  # the wheel of this very tree
$python -c 'import peft, transformers; print("transformers", transformers.__version__, "peft", peft.__version__)'
(
  program=$PWD/$venv/bin/portability
  cd "$(mktemp -d)"
  export HF_HUB_OFFLINE=1 WANDB_MODE=disabled
  "$program" run +sweep=smoke method=lora_peft
  "$program" analyze results/ --quiet
)
HF_HUB_OFFLINE=1 $python -m pytest -m "not full" tests/methods/test_peft_contract.py tests/porting/test_adapter_folders.py \
  tests/hosts/test_hosts.py tests/system/test_port_command.py tests/system/test_base_install.py "$@"
