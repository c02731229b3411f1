#!/usr/bin/env bash
# Give the emulated Raspberry Pi 5 ExecuTorch: DIR/bin/python3-executorch, with PyTorch's and ExecuTorch's aarch64 wheels.
#
#   tests/fakes/emulate_pi5_executorch.sh [DIR]      DIR as for tests/fakes/emulate_pi5.sh, which it runs first
#
# A Pi takes torch's CPU build from pytorch.org; PyPI, which mirrors hold, has CUDA's for aarch64. Its CPU kernels are
# used here. Of NVIDIA's libraries the small CUDA runtime is real; the functions of the rest end the process, so it is
# seen that none is called. 440 MB to download, 1.2 GB on disk; needs gcc-aarch64-linux-gnu.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-${PHI_EDGE_CACHE:-$HOME/.cache/phi-edge}/pi5}
python=${PYTHON:-python3}
"$here/emulate_pi5.sh" "$dir"
exec 9>"$dir.lock"; flock 9 # two test runs may start at once
[ ! -e "$dir/bin/python3-executorch" ] || exit 0
dir=$(cd "$dir" && pwd)
part=$dir/executorch.part
rm -rf "$part" "$dir/executorch" && mkdir -p "$part/wheels" "$part/site" "$part/nvidia"

mapfile -t pinned < <(grep -E '^(torch|executorch)==' "$here/../../constraints.txt")
"$python" "$here/../../ci/plain_pip.py" download -q --no-deps --only-binary=:all: --python-version 3.11 \
  --implementation cp --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 \
  --platform manylinux2014_aarch64 -c "$here/../../constraints.txt" -d "$part/wheels" \
  "${pinned[@]}" numpy typing-extensions sympy mpmath networkx filelock fsspec 'nvidia-cuda-runtime==13.0.*'
for wheel in "$part"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$part/site"; done
find "$part/site/nvidia" -name 'libcudart.so.*' -exec mv {} "$part/nvidia/" \;
libraries=("$part"/site/torch/lib/*.so)
aarch64-linux-gnu-nm -D --undefined-only "${libraries[@]}" | sed -n 's/^ *U \(\(cu\|nccl\|nv\)[A-Za-z0-9_]*\).*/\1/p' |
  sort -u | sed 's/.*/void &(void) { __builtin_trap(); }/' >"$part/nvidia.c"
aarch64-linux-gnu-gcc -w -fPIC -c "$part/nvidia.c" -o "$part/nvidia.o"
for name in $(aarch64-linux-gnu-readelf -d "${libraries[@]}" | sed -n 's/.*NEEDED.*\[\(lib\(cu\|nccl\|nv\)[^]]*\)\]/\1/p' |
  sort -u); do
  [ ! -e "$part/nvidia/$name" ] && [ ! -e "$part/site/torch/lib/$name" ] || continue
  version=$(aarch64-linux-gnu-readelf -VW "${libraries[@]}" |
    awk -v name="$name" '/File:/ { file = $5 } /Name:/ && file == name && !seen++ { print $3 }')
  echo "${version:-$name} { global: *; };" >"$part/nvidia.version"
  aarch64-linux-gnu-gcc -shared -nostdlib -Wl,-soname,"$name" -Wl,--version-script,"$part/nvidia.version" \
    "$part/nvidia.o" -o "$part/nvidia/$name"
done
rm -rf "$part/wheels"
mv "$part" "$dir/executorch"
cat >"$dir/bin/python3-executorch.part" <<'SCRIPT'
#!/bin/sh
bin=$(dirname "$(readlink -f "$0")")
export PYTHONPATH="$bin/../executorch/site${PYTHONPATH:+:$PYTHONPATH}" LD_LIBRARY_PATH="$bin/../executorch/nvidia"
exec "$bin/python3" "$@"
SCRIPT
chmod +x "$dir/bin/python3-executorch.part"
mv "$dir/bin/python3-executorch.part" "$dir/bin/python3-executorch"
