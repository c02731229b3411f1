#!/usr/bin/env bash
# Build the software of the emulated phone: the native agent for this machine and for arm64, and an arm64 root for
# qemu-user with ONNX Runtime's libraries out of their Linux wheels (a phone's differ in their C library alone).
#   tests/fakes/emulate_android.sh DIR    -> DIR/agent, agent-sanitized, agent-arm64, libraries, root; what is there already is kept
# Needs the packages of ci/install_system.sh. About 30 s of one core; 130 MB.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
dir=$(mkdir -p "$1" && cd "$1" && pwd)
python=${PYTHON:-python3}
exec 9>"$dir/.lock"; flock 9 # two test runs may start at once

checkout=$(cksum <<<"$here" | cut -d' ' -f1) # CMake's folders are bound to their sources' path
build() { # NAME CMAKE_OPTION...
  local out="$dir/build-$checkout/$1"
  cmake -S "$here/runtimes/native" -B "$out" "${@:2}" >/dev/null
  cmake --build "$out" >/dev/null
  cp "$out/phi-edge-agent" "$dir/.part" && mv "$dir/.part" "$dir/$1"
}
build agent
build agent-sanitized -DPHI_EDGE_SANITIZE=ON
build agent-arm64 -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc

wanted=$(grep -E '^(onnxruntime|onnxruntime-genai)==' "$here/constraints.txt")
[ "$(cat "$dir/.wheels" 2>/dev/null)" = "$wanted" ] || {
  rm -rf "$dir/wheels" "$dir/site" "$dir/libraries" && mkdir "$dir/wheels" "$dir/libraries"
  # shellcheck disable=SC2086 # two words, two requirements
  "$python" "$here/ci/plain_pip.py" download -q --no-deps --only-binary=:all: --python-version 3.11 --implementation cp \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 -d "$dir/wheels" $wanted
  for wheel in "$dir"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$dir/site"; done
  mv "$dir"/site/onnxruntime/capi/libonnxruntime.so.* "$dir/libraries/libonnxruntime.so"
  mv "$dir/site/onnxruntime_genai/libonnxruntime-genai.so" "$dir/libraries/"
  rm -rf "$dir/wheels" "$dir/site"
  echo "$wanted" >"$dir/.wheels"
}

# ONNX Runtime reads the processor's topology, and crashes on the host's: show it four Cortex-A76.
root=$dir/root cpu=$dir/root/sys/devices/system/cpu
mkdir -p "$cpu"
ln -sfn /usr/aarch64-linux-gnu/lib "$root/lib"
for i in 0 1 2 3; do
  core=$cpu/cpu$i
  mkdir -p "$core/regs/identification" "$core/topology" "$core/cpufreq"
  echo 0x00000000414fd0b1 >"$core/regs/identification/midr_el1"
  echo "$i" >"$core/topology/core_id"; echo 0 >"$core/topology/physical_package_id"
  echo f >"$core/topology/core_siblings"; echo 0-3 >"$core/topology/core_siblings_list"
  echo 0-3 >"$core/topology/package_cpus_list"
  echo 2400000 >"$core/cpufreq/cpuinfo_max_freq"; echo 1500000 >"$core/cpufreq/cpuinfo_min_freq"
done
for list in possible present online; do echo 0-3 >"$cpu/$list"; done
echo 3 >"$cpu/kernel_max"
