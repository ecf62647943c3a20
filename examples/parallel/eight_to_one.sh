#!/usr/bin/env bash
# From 8 cards to 1 without a card: bash examples/parallel/eight_to_one.sh [DIR]     (default parallel_output)
# A small random model is laid out for 8 workers in two ways by MindSpore's own parallel passes, cut, cut anew, joined
# again and asked; what comes back is compared with what went in.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
place=${1:-parallel_output}
mkdir -p "$place" && cd "$place"
say() { printf '\n== %s\n' "$*"; }

say "a small random Qwen2 in Hugging Face's form, and the same under MindFormers' names"
python "$root/tools/make_tiny_model.py" --output_path model --family qwen2 --hidden_size 256
python "$root/tools/convert_weight.py" --input_path model --output_path whole

say "which layouts of 8 workers there are"
python "$root/tools/plan_layout.py" --config "$root/model_configs/qwen2/7b.yaml" --world_size 8 --device_memory 64 --top 5

# What a run on 8 cards leaves in output/strategy, here by compiling its graph for a pretended world.
strategy() { # strategy FOLDER key=value ...
  python "$root/run_dpo.py" --config "$root/model_configs/dpo/default.yaml" --only_save_strategy True \
    --dry_run_world_size 8 --load_checkpoint model data.seq_len=129 train.global_batch_pairs=8 output_dir="$@"
}
say "2 x 4 workers, matrices in 4 parts"
strategy dp2mp4 parallel.model_parallel=4
say "4 x 2 workers, weights and optimizer shared out over the 4 as well"
strategy dp4mp2 parallel.model_parallel=2 parallel.optimizer_shard=true

say "1 -> 8: what 8 cards hold"
python "$root/tools/transform_checkpoint.py" --src_checkpoint=whole --dst_strategy=dp2mp4/strategy --dst_checkpoint=cut
say "8 -> 8: the other layout"
python "$root/tools/transform_checkpoint.py" --src_checkpoint=cut/checkpoint_network --src_strategy=cut/strategy \
  --dst_strategy=dp4mp2/strategy --dst_checkpoint=cut_anew
say "8 -> 1: one card, and a Hugging Face folder"
python "$root/tools/transform_checkpoint.py" --src_checkpoint=cut_anew/checkpoint_network \
  --src_strategy=cut_anew/strategy --dst_checkpoint=merged
python "$root/tools/transform_checkpoint.py" --src_checkpoint=cut_anew/checkpoint_network \
  --src_strategy=cut_anew/strategy --dst_checkpoint=exported --format hf

say "bit for bit what went in"
cmp model/model.safetensors exported/model.safetensors
echo "the exported tensors are those of the model"
cmp cut/checkpoint_network/tensors.json merged/checkpoint_network/tensors.json
echo "the sha256 of every merged tensor is that of the one that was cut"

say "the merged model answers"
python "$root/run_dpo.py" --config "$root/model_configs/dpo/default.yaml" --run_mode predict --load_checkpoint merged \
  --predict_data "What is a layout?" generation.max_new_tokens=8
