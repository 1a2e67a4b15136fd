#!/bin/sh
# The whole recipe on the real Flickr8k, with the split that papers report on (Karpathy's, which is the official one).
#
#     sh scripts/flickr8k.sh DIR [options of `toolkit finetune`]
#
# DIR holds the photographs and their captions; nothing in it is changed:
#     Images/ or Flicker8k_Dataset/             the 8,091 JPEG files
#     dataset_flickr8k.json                     Karpathy's annotations; or, in its place,
#     captions.txt or Flickr8k.token.txt, and Flickr_8k.trainImages.txt, .devImages.txt, .testImages.txt
#
# Everything is written to ./flickr8k (or $OUT): the cache, the model, captions.jsonl, gallery.html, scores.csv and
# evaluation.html. Run again, it goes on where it was stopped. The last line is the row for the README's table of results.
#
# ENCODER and DECODER name other weights, or folders with them where there is no network. DECODER=small is a decoder from
# scratch, for small machines:
#
#     ENCODER=vit-tiny DECODER=small sh scripts/flickr8k.sh DIR     # docs/finetuning.md says where to get vit-tiny
#
# Settings (docs/finetuning.md has the runs behind them); nothing is chosen on the test split:
#     a pretrained decoder: the defaults of `toolkit finetune` (AdamW, peak 5e-5, 8 images a step with all 5 captions
#     each, the epoch with the best validation CIDEr) but for --epochs 5 --warmup-ratio 0.1 --early-stopping-patience 2; the
#     defaults of `toolkit batch-caption` (4 beams, no 3-gram twice, length penalty 2).
#     DECODER=small: the decoder alone on cached features for 6 epochs, then the encoder's last 6 layers too for 4 epochs
#     with augmentation; length penalty 1. QUICK=1 leaves out the second.
set -eu

fail() { echo "$1" >&2; exit 1; }

[ $# -ge 1 ] || fail "usage: sh scripts/flickr8k.sh DIR [options of toolkit finetune]; DIR holds Flickr8k."
data=$1; shift
out=${OUT:-flickr8k}
encoder=${ENCODER:-google/vit-base-patch16-224}
decoder=${DECODER:-gpt2}
quick=${QUICK:-}
command -v toolkit > /dev/null || fail "toolkit: not on the PATH; run \`pip install .\` in the clone, or activate .venv."

[ -d "$data" ] || fail "$data: no such folder; name the one that holds Flickr8k's Images/ and dataset_flickr8k.json."
images=
for folder in Images Flicker8k_Dataset Flickr8k_Dataset; do
    [ -n "$images" ] || [ ! -d "$data/$folder" ] || images=$data/$folder
done
[ -n "$images" ] || fail "$data: no photographs; put the 8,091 JPEG files of Flickr8k into $data/Images."
annotations=
for file in dataset_flickr8k.json captions.txt Flickr8k.token.txt; do
    [ -n "$annotations" ] || [ ! -f "$data/$file" ] || annotations=$data/$file
done
[ -n "$annotations" ] || fail "$data: no captions; put Karpathy's dataset_flickr8k.json (or captions.txt) into it."
case $annotations in
    *.json) ;;
    *) for split in train dev test; do
        [ -f "$data/Flickr_8k.${split}Images.txt" ] || fail "$data: $(basename "$annotations") has no splits; put \
dataset_flickr8k.json, or Flickr_8k.trainImages.txt, .devImages.txt and .testImages.txt, beside it."
    done ;;
esac

weights() {
    fail "If it is the weights that could not be had: on a machine with a network run \`hf download $encoder --local-dir vit\` and \
\`hf download $decoder --local-dir gpt2\`, put both folders here, and run ENCODER=vit DECODER=gpt2 sh $0 $data."
}

mkdir -p "$out"
toolkit preprocess --annotations "$annotations" --images "$images" --out "$out/cache" \
    --encoder "$encoder" --decoder "$decoder" || [ $? -eq 3 ] || weights
penalty=2
model=$out/model
if [ "$decoder" = small ]; then
    penalty=1
    first=$out/first
    [ -z "$quick" ] || model=$first
    toolkit finetune "$out/cache" --output-dir "$first" --cache-features \
        --length-penalty $penalty --eval-batch-size 64 "$@"
    [ -n "$quick" ] || toolkit finetune "$out/cache" --init-from "$first" --output-dir "$model" --epochs 4 \
        --batch-size 32 --lr 3e-4 --encoder-lr 1e-4 --warmup-ratio 0.03 --lr-scheduler-type cosine --unfreeze-last 6 \
        --decoder-dropout 0.1 --augment light --flip --length-penalty $penalty --eval-batch-size 64 "$@"
else
    toolkit finetune "$out/cache" --output-dir "$model" --epochs 5 --warmup-ratio 0.1 --early-stopping-patience 2 "$@"
fi

toolkit batch-caption "$out/cache" --split test --model "$model" --output "$out/captions.jsonl" \
    --length-penalty $penalty --gallery "$out/gallery.html" || [ $? -eq 3 ]
toolkit evaluate --hypotheses "$out/captions.jsonl" --references "$out/cache" --split test --human \
    --per-image "$out/scores.csv" --page "$out/evaluation.html" --json > "$out/scores.json"
python=$(dirname "$(command -v toolkit)")/python
"$python" - "$out/scores.json" "$encoder + $decoder" <<'PYTHON'
import json, sys
scores = json.load(open(sys.argv[1], encoding="utf-8"))
def cell(name):
    figure = scores["metrics"][name]
    return f"{100 * figure['score']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"
names = ("bleu_1", "bleu_4", "rouge_l", "cider")
print(scores["signature"])
print("| model | test images | BLEU-1 | BLEU-4 | ROUGE-L | CIDEr | ended |")
print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
row = [sys.argv[2], str(scores["images"]), *map(cell, names), f"{scores['health']['ended']:.1%}"]
print("| " + " | ".join(row) + " |")
PYTHON
