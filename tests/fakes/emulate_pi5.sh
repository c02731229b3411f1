#!/usr/bin/env bash
# Build the emulated Raspberry Pi 5 that the tests marked `emulated` put behind a real sshd.
#
#   tests/fakes/emulate_pi5.sh [DIR]      default: pi5 in $PHI_EDGE_CACHE or ~/.cache/phi-edge
#   DIR/bin/python3              CPython 3.11 for arm64 under qemu-user, as a Cortex-A76; it makes virtual environments
#   DIR/bin/python3-onnx         the same with ONNX Runtime and llguidance
#   DIR/wheels                   all that `pip install 'phi-edge[onnx,grammar]'` brings to a Pi: a wheelhouse
#
# It contains Debian's arm64 Python, the very aarch64 wheels that a Pi installs, and a Pi's view of /proc and /sys. It does
# not emulate speed, a kernel, or the VideoCore: times and temperatures of it mean nothing. Needs qemu-user-static
# (ci/install_system.sh). Changes nothing on this machine outside DIR; built again when this file or the pins change.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/../.." && pwd)
constraints=$checkout/constraints.txt
dir=${1:-${PHI_EDGE_CACHE:-$HOME/.cache/phi-edge}/pi5}
python=${PYTHON:-python3}
light=(click jinja2 llguidance numpy onnxruntime rich tokenizers)
packages=(libc6 libpython3.11-minimal python3.11-minimal libpython3.11-stdlib libstdc++6 libgcc-s1 zlib1g libexpat1
  libssl3 libffi8 libbz2-1.0 liblzma5 libgomp1 libcrypt1 libuuid1 python3.11-venv python3-pip-whl python3-setuptools-whl)

mkdir -p "$(dirname "$dir")"
exec 9>"$dir.lock"; flock 9 # two test runs may start at once
version=$(cat "$0" "$constraints" | sha256sum | cut -c1-16)
[ "$(cat "$dir/version" 2>/dev/null)" != "$version" ] || exit 0
command -v qemu-aarch64-static >/dev/null || { echo "$0: needs qemu-user-static: ci/install_system.sh" >&2; exit 1; }
rm -rf "$dir.part"
mkdir -p "$dir.part"/{apt/lists/partial,apt/archives/partial,debs,root,bin,wheels}
dir_part=$(cd "$dir.part" && pwd)

# The distribution's own sources, but with lists of our own and for arm64: the machine's package state stays as it is.
apt=(apt-get -q -o "Dir::State::lists=$dir_part/apt/lists" -o "Dir::Cache::archives=$dir_part/apt/archives"
  -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Dir::State::status=/dev/null
  -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root)
"${apt[@]}" update >/dev/null
(cd "$dir_part/debs" && "${apt[@]}" download "${packages[@]}" >/dev/null)
root=$dir_part/root
for deb in "$dir_part"/debs/*.deb; do dpkg -x "$deb" "$root"; done

# A Pi runs no compiler for its packages: binary wheels, for the glibc of Raspberry Pi OS Bookworm.
"$python" "$checkout/ci/plain_pip.py" download -q --only-binary=:all: --python-version 3.11 \
  --implementation cp --platform manylinux_2_31_aarch64 --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
  --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 -c "$constraints" -d "$dir_part/wheels" "${light[@]}"
for wheel in "$dir_part"/wheels/{llguidance,numpy,onnxruntime}-*.whl; do "$python" -m zipfile -e "$wheel" "$root/site"; done

# ONNX Runtime counts cores and caches in /sys, and an x86 machine's crash it: four Cortex-A76 with their caches.
cpus=$root/sys/devices/system/cpu
mkdir -p "$cpus" "$root"/proc/{sys/kernel/random,device-tree} "$root/sys/class/thermal/thermal_zone0"
for core in 0 1 2 3; do
  cpu=$cpus/cpu$core
  mkdir -p "$cpu"/{regs/identification,topology,cpufreq}
  echo 0x00000000414fd0b1 >"$cpu/regs/identification/midr_el1"
  echo "$core" >"$cpu/topology/core_id"
  echo 0 >"$cpu/topology/physical_package_id"
  echo f >"$cpu/topology/core_siblings"
  echo 0-3 | tee "$cpu/topology/core_siblings_list" >"$cpu/topology/package_cpus_list"
  echo 2400000 | tee "$cpu/cpufreq/cpuinfo_max_freq" >"$cpu/cpufreq/scaling_cur_freq"
  echo 1500000 >"$cpu/cpufreq/cpuinfo_min_freq"
  echo ondemand >"$cpu/cpufreq/scaling_governor"
  index=0
  while read -r type level size shared; do
    cache=$cpu/cache/index$index
    mkdir -p "$cache"
    echo "$type" >"$cache/type"
    echo "$level" >"$cache/level"
    echo "$size" >"$cache/size"
    echo "$shared" >"$cache/shared_cpu_list"
    echo 64 >"$cache/coherency_line_size"
    echo 4 >"$cache/ways_of_associativity"
    echo 256 >"$cache/number_of_sets"
    index=$((index + 1))
  done <<CACHES
Data 1 64K $core
Instruction 1 64K $core
Unified 2 512K $core
Unified 3 2048K 0-3
CACHES
  printf 'processor\t: %s\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n' "$core"
done >"$root/proc/cpuinfo"
echo 0-3 | tee "$cpus/possible" "$cpus/present" >"$cpus/online"
echo 3 >"$cpus/kernel_max"
printf 'Raspberry Pi 5 Model B Rev 1.0\0' >"$root/proc/device-tree/model"
echo 00000000-0000-4000-8000-000000000001 >"$root/proc/sys/kernel/random/boot_id"
echo cpu-thermal >"$root/sys/class/thermal/thermal_zone0/type"
echo 51250 >"$root/sys/class/thermal/thermal_zone0/temp"
# The 8 GB board, with the zram swap that Raspberry Pi OS sets up.
printf 'MemTotal:        8255488 kB\nMemFree:         6291456 kB\nMemAvailable:    7340032 kB\nSwapTotal:       2097152 kB\nSwapFree:        2097152 kB\n' >"$root/proc/meminfo"
printf 'Filename\tType\t\tSize\tUsed\tPriority\n/dev/zram0 partition\t2097152\t0\t100\n' >"$root/proc/swaps"

# Programs of the Pi: Python, and the firmware's spokesman, which says what the file `throttled` says.
# Python finds its library and its virtual environment from its own name (-0): a venv's python is a link to this script.
ln -s root/usr/lib "$dir_part/lib"
cat >"$dir_part/bin/python3" <<'SCRIPT'
#!/bin/sh
here=$(dirname "$(dirname "$(readlink -f "$0")")")
export PYTHONNOUSERSITE=1
exec qemu-aarch64-static -cpu cortex-a76 -L "$here/root" -0 "$0" "$here/root/usr/bin/python3.11" "$@"
SCRIPT
cat >"$dir_part/bin/python3-onnx" <<'SCRIPT'
#!/bin/sh
bin=$(dirname "$(readlink -f "$0")")
export PYTHONPATH="$bin/../root/site${PYTHONPATH:+:$PYTHONPATH}"
exec "$bin/python3" "$@"
SCRIPT
cat >"$dir_part/bin/vcgencmd" <<'SCRIPT'
#!/bin/sh
here=$(dirname "$(dirname "$(readlink -f "$0")")")
case $1 in
get_throttled) echo "throttled=$(cat "$here/throttled")" ;;
measure_temp) echo "temp=51.2'C" ;;
*) exit 1 ;;
esac
SCRIPT
echo 0x0 >"$dir_part/throttled"
chmod +x "$dir_part"/bin/*
rm -rf "$dir_part"/{apt,debs}
"$dir_part/bin/python3-onnx" -c 'import platform, onnxruntime; assert platform.machine() == "aarch64", platform.machine()'
echo "$version" >"$dir_part/version"
rm -rf "$dir"
mv "$dir_part" "$dir"
