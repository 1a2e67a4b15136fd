#!/bin/sh
# Whether the ranges of pyproject.toml hold at their ends: an environment of its own with the lowest versions they allow (or the newest), and a
# part of the tests in it, a few minutes long.
#
#     sh scripts/check_ranges.sh DIR lowest                    # DIR is made, and may be deleted afterwards
#     sh scripts/check_ranges.sh DIR newest tests/models       # other tests than those below
#
# Only what pyproject.toml names is lowest; what these packages need themselves is the newest that fits. torch is not tried at its lower
# bound: it is the one of constraints.txt, or what TORCH names, as TORCH=torch==2.13.0+cpu. Needs uv (pip install uv), which may get its
# packages from where UV_INDEX_URL, UV_FIND_LINKS and the like say.
set -eu

dir=${1:?usage: sh scripts/check_ranges.sh DIR lowest|newest [TESTS...]}
end=${2:?usage: sh scripts/check_ranges.sh DIR lowest|newest [TESTS...]}
shift 2
case $end in lowest) way=lowest-direct ;; newest) way=highest ;; *) echo "$end: say lowest or newest" >&2; exit 2 ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
[ ! -e "$dir" ] || { echo "$dir: is there already; name a new folder" >&2; exit 1; }
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

echo "${TORCH:-$(grep '^torch==' "$root/constraints.txt")}" > "$dir/torch.txt"
uv venv --quiet --python "${PYTHON:-3.11}" "$dir/venv"
uv pip compile --quiet --no-header --no-annotate --python "$dir/venv/bin/python" --resolution "$way" --override "$dir/torch.txt" \
    --extra dev --extra lora --extra review --extra tensorboard --output-file "$dir/requirements.txt" "$root/pyproject.toml"
uv pip install --quiet --python "$dir/venv/bin/python" --no-deps --requirement "$dir/requirements.txt"
mkdir "$dir/source" # a build leaves folders where it is done
cp -r "$root/toolkit" "$root/pyproject.toml" "$root/README.md" "$root/LICENSE" "$dir/source"
uv pip install --quiet --python "$dir/venv/bin/python" --no-deps --no-build-isolation "$dir/source"
cat "$dir/requirements.txt"

[ $# -gt 0 ] || set -- tests/arguments tests/test_options.py tests/test_public_api.py tests/data tests/outputs tests/cache/test_cache.py \
    tests/captioning/test_decoding.py tests/evaluation/test_metrics.py tests/training/test_trainer_args.py tests/training/test_reporters.py \
    tests/models/test_lora.py tests/reports tests/test_cli.py
cd "$root"
unset PYTHONPATH # `pytest`, unlike `python -m pytest`, does not look for the package here: the installed one is tested
exec "$dir/venv/bin/pytest" -q -p no:cacheprovider "$@"
