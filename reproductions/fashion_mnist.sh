#!/usr/bin/env bash
# Train and evaluate the eight Fashion-MNIST siblings, then place them on one page.
set -euo pipefail
out=${1:-runs}
stalwart="$(dirname "$0")/../.venv/bin/stalwart"
siblings="natural gaussian wca-diagonal wca fgsm-rs pgd-at trades wca-at"
folders=()
for name in $siblings; do
    run="$out/fashion-mnist-$name"
    folders+=("$run")
    if [ ! -e "$run/model.safetensors" ]; then
        "$stalwart" train "fashion-mnist-$name" --out "$run" $([ -e "$run/recipe.yaml" ] && echo --resume)
    fi
    [ -e "$run/report.json" ] || "$stalwart" evaluate "$run"
done
"$stalwart" report "${folders[@]}" --out "$out/fashion-mnist-report" --title "Fashion-MNIST, small CNN"
