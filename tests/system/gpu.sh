#!/usr/bin/env bash
# What only a GPU shows, in eight minutes, the most important part first; each part is complete by itself, and one that fails
# does not stop the next. All weights are random: nothing is fetched, nothing large is brought. Without a GPU tiny shapes show
# that the script works, and no number of theirs means anything.
#   tests/system/gpu.sh [a b c d]    some parts alone; PYTHON: with adapters; NEWEST: with transformers 5 (.venv-newest)
set -uo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python} NEWEST=${NEWEST:-.venv-newest/bin/python}
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
PARTS=${*:-a b c d}
failed=() slack=1  # a CPU without one takes longer

# say what a part found, or that it failed: checked SECONDS NAME COMMAND...
checked() {
  local limit=$(($1 * slack)) left=$((480 * slack - SECONDS)) name=$2 began=$SECONDS; shift 2
  echo "---- $name"
  limit=$((limit < left ? limit : left < 1 ? 1 : left))
  if timeout --kill-after=5 "$limit" "$@" 2> >(tail -n 3 >&2); then echo "ok: $name, $((SECONDS - began)) s"
  else failed+=("$name"); echo "FAILED: $name, after $((SECONDS - began)) s of at most $limit"; fi
}
bench() { checked "$1" "$2" "$3" -m portability.bench "${@:4}"; }
wanted() { [[ " $PARTS " == *" $1 "* ]]; }

if "$PYTHON" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
  "$PYTHON" -c 'import torch; print("GPU:", torch.cuda.get_device_name(), "torch", torch.__version__)'
  device=cuda t5=t5-base llama=llama-1b small_t5=t5-256x4 small_llama=llama-256x4 batch=32 rounds=2
  members=1,8,32 few=1,8
else
  echo "no GPU: tiny shapes on a CPU, to show that the script works"
  device=cpu t5=t5-64x2 llama=llama-64x2 small_t5=t5-64x2 small_llama=llama-64x2 batch=4 rounds=1
  members=1,2 few=1,2 slack=10
fi
both=(--only equality --only graphs --device "$device" --batch-size "$batch")

if wanted a; then
  echo "== a: losses, alone, stacked, by the library's own loop; and replayed as CUDA graphs"
  bench 60 "a T5, LoRA of adapters" "$PYTHON" "${both[@]}" --shape $small_t5 --method lora
  bench 60 "a Llama, bf16, LoRA of peft" "$PYTHON" "${both[@]}" --shape $small_llama --method lora_peft --precision bf16
  bench 60 "a T5, (IA)3 of peft" "$PYTHON" "${both[@]}" --shape $small_t5 --method ia3
  if [ -x "$NEWEST" ]; then
    "$NEWEST" -c 'import peft, transformers; print("transformers", transformers.__version__, "peft", peft.__version__)'
    bench 60 "a T5, LoRA of peft, transformers 5" "$NEWEST" "${both[@]}" --shape $small_t5 --method lora_peft
    bench 60 "a Llama, bf16, LoRA of peft, transformers 5" "$NEWEST" "${both[@]}" --shape $small_llama --method lora_peft \
      --precision bf16
  else echo "SKIPPED: transformers 5 (no $NEWEST; tests/second_environment.sh makes it, or set NEWEST)"; fi
fi
if wanted b || wanted d; then
  echo "== b, d: T5-base's shape, bf16, SST-2's lengths, batch $batch: ours against Trainer + peft as it comes, well set, and in"
  echo "   several processes (asked for: 10 times the first, 3 times the last, per module); and hours of the 1,440 cells from that"
  bench 200 "b, d" "$PYTHON" --only rivals --only study --shape $t5 --method lora --precision bf16 --batch-size "$batch" \
    --members $members --rounds $rounds --device $device
fi
if wanted c; then
  echo "== c: the same at the shape of a Llama of 1B"
  bench 180 "c" "$PYTHON" --only rivals --shape $llama --method lora_peft --precision bf16 --batch-size "$batch" \
    --members $few --rounds 1 --device $device
fi
echo "== $SECONDS s; ${#failed[@]} failed${failed[*]:+: ${failed[*]}}"
[ ${#failed[@]} = 0 ]
