#!/usr/bin/env bash
# Proves on one GPU what only a GPU can show, within nine minutes and without a network:
#
#     scripts/prove_gpu.sh OUT           # OUT/report.md, and a log of each part beside it
#     scripts/prove_gpu.sh OUT --cpu     # the same parts at tiny sizes on the CPU: do they still run?
#
# Needs an installed environment (`pip install -e '.[dev]'`, any torch of the stated range); PYTHON names its python.
# Each part has its own time, and is reported even if another fails. The exit code is the number of parts that failed.
set -u
out=${1:?usage: scripts/prove_gpu.sh OUT [--cpu]}
cd "$(dirname "$0")/.." || exit 1
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
python=${PYTHON:-python3}
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
device=cuda size=base batch=64 images=256 steps=10 drawn=4000 epochs=6
if [ "${2:-}" = --cpu ]; then
    export PROVE_ON_CPU=1 CUDA_VISIBLE_DEVICES=
    device=cpu size=tiny batch=4 images=8 steps=2 drawn=40 epochs=1
fi
failed=0 report=$out/report.md work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" - >"$report" <<'PYTHON'
import platform, torch, transformers
name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(f"# {name}, torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}\n")
print("| part | result | seconds |\n| --- | --- | ---: |")
PYTHON

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 started=$SECONDS code
    shift 2
    timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
    code=$?
    [ "$code" = 0 ] || failed=$((failed + 1))
    case $code in 0) text=passed ;; 124 | 137) text="out of its $limit s" ;; *) text="failed ($code)" ;; esac
    echo "| $name | $text | $((SECONDS - started)) |" >>"$report"
    echo "$name: $text" >&2
}

part tests 150 "$python" -m pytest -q -m gpu tests/test_gpu.py
part training 130 "$python" scripts/bench_train.py --device "$device" --size "$size" --batch-size "$batch" \
    --images $((2 * batch)) --steps "$steps" --rounds 1
part captioning 110 "$python" scripts/bench_caption.py --device "$device" --size "$size" --batch-size "$batch" \
    --images "$images" --notebook-images 2 --rounds 3
part demo 130 "$python" -m toolkit demo "$work/demo" --images "$drawn" --epochs "$epochs"
{
    for name in training captioning demo; do
        printf '\n## %s\n\n' "$name"
        if [ "$name" = demo ]; then tail -n 12 "$out/demo.log"; else grep -E '^\||FLOP|tokens as' "$out/$name.log"; fi
    done
    printf '\n## tests\n\n'
    tail -n 3 "$out/tests.log"
} >>"$report"
cat "$report"
exit "$failed"
