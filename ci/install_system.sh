#!/usr/bin/env bash
# Install the Debian packages that marked tests drive. Quick when they are there; needs root when they are not.
set -euo pipefail

# package -> the program that shows that it is there
declare -A programs=(
  [chromium]=chromium                                  # the report and the web bundle, in a real browser
  [strace]=strace                                      # that nothing looks a name up
  [adb]=adb                                            # Android: the real client
  [qemu-user-static]=qemu-aarch64-static               # the emulated Raspberry Pi and phone
  [openssh-client]=ssh [openssh-server]=/usr/sbin/sshd # the Raspberry Pi's wire
  [gcc-aarch64-linux-gnu]=aarch64-linux-gnu-gcc [libc6-dev-arm64-cross]=/usr/aarch64-linux-gnu/include/stdio.h
  [libstdc++6-arm64-cross]=/usr/aarch64-linux-gnu/lib/libstdc++.so.6 # what ONNX Runtime for arm64 needs
  [cmake]=cmake [gcc]=gcc [g++]=g++ [libc6-dev]=/usr/include/stdio.h # Android: the native agents
  [clang]=clang                                        # make fuzz, and its libFuzzer and sanitizers
  [libclang-rt-14-dev]=/usr/lib/llvm-14/lib/clang/14.0.6/lib/linux/libclang_rt.fuzzer-$(uname -m).a
  [wine]=wine [xvfb]=Xvfb [xauth]=xauth [npm]=npm      # the Windows libraries, from the npm registry
  [mesa-vulkan-drivers]=/usr/share/vulkan/icd.d/lvp_icd.x86_64.json # and the software device they see
  [libvulkan1]=/usr/lib/x86_64-linux-gnu/libvulkan.so.1 [libgl1]=/usr/lib/x86_64-linux-gnu/libGL.so.1
)

missing=()
for package in "${!programs[@]}"; do
  command -v "${programs[$package]}" >/dev/null || [ -e "${programs[$package]}" ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

# The tests start an sshd of their own on 127.0.0.1; the package must not start one for the network.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  trap 'rm -f $policy' EXIT
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod +x $policy
fi
apt-get update -q >/dev/null
apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
