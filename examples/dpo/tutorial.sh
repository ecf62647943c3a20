# Sourced by the tutorial.sh of a folder here, which runs the folder's steps (1_*.sh, 2_*.sh, ...) in their order:
#     bash examples/dpo/FAMILY/tutorial.sh                 on your model and data, as the folder's README says
#     bash examples/dpo/FAMILY/tutorial.sh --tiny [DIR]    on a small random model that it makes, on 2 CPU workers
# The folder defines `bring_tiny`: what a user brings, small. It is called in DIR (default tutorial_output/FAMILY), a
# copy of the repository's layout, so that the steps are the same and find their files under the same names.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
family=$(basename "$(cd "$(dirname "$0")" && pwd)")

tutorial() {
  local place=$root
  if [ "${1:-}" = --tiny ]; then
    place=${2:-tutorial_output/$family}
    new_place "$place"
    place=$(cd "$place" && pwd)
    cd "$place"
    bring_tiny
    export WORKERS=2 SEQ_LEN=${SEQ_LEN:-129}
  elif [ $# -gt 0 ]; then
    echo "error: usage: bash $0 [--tiny [DIR]]" >&2
    exit 2
  fi
  for step in "$place/examples/dpo/$family"/[1-9]_*.sh; do
    printf '\n== %s\n' "$(basename "$step")"
    sed '1,/^cd /d' "$step"
    bash "$step"
  done
  printf '\n== done in %s s, in %s\n' "$SECONDS" "$place"
}

# new_place DIR: the repository's layout, links to what is only read, copies of what the steps write beside.
new_place() {
  if [ -e "$1" ] && [ ! -e "$1/.tutorial" ]; then
    echo "error: $1 exists and is not a former tutorial's; name another folder" >&2
    exit 2
  fi
  rm -rf "$1"
  mkdir -p "$1/examples/dpo/$family"
  touch "$1/.tutorial"
  ln -s "$root"/{mindrlhf,scripts,tools,run_dpo.py} "$1"
  cp -r "$root/model_configs" "$1"
  find "$root/examples/dpo/$family" -maxdepth 1 -name '*.py' -exec ln -s -t "$1/examples/dpo/$family" {} +
  find "$root/examples/dpo/$family" -maxdepth 1 '(' -name '*.sh' -o -name '*.yaml' ')' \
    -exec cp -t "$1/examples/dpo/$family" {} +
}

# tiny_model YAML TINY FOLDER FLAGS: a random model in FOLDER; model_configs/YAML.yaml becomes that of model_configs/tiny.
tiny_model() {
  python tools/make_tiny_model.py --output_path "$3" "${@:4}"
  cat >"model_configs/$1.yaml" <<END
include: ../tiny/$2.yaml
optimizer: {learning_rate: 1.0e-3}
generation: {max_new_tokens: 32}
END
}

# tiny_data FOLDER: train.jsonl and held_out.jsonl in FOLDER, rows of cvalues.
tiny_data() {
  python tools/make_preference_data.py --output_path "$1" --pairs 64 --held_out 8 --corpus 1
}
