"""One command of an ssh session as Windows' OpenSSH server starts it, under Wine: run by Windows' own Python.

Its source (w32-doexec.c) makes three pipes and the command line  SHELL /c "COMMAND"  for cmd.exe, without escaping.
"""

import os
import subprocess
import sys
import threading

SHELL = r"C:\windows\system32\cmd.exe"


def pump(source: int, target: int) -> None:
    """All bytes, as they come; then the end."""
    try:
        while block := os.read(source, 1 << 16):
            while block:
                block = block[os.write(target, block) :]
    except OSError:
        pass  # the other side has ended
    if target > 2:
        os.close(target)


def exit_argument(code: int) -> int:
    """os._exit takes a signed 32-bit number. A crashed or ended program's code, as 0xC0000005, is an unsigned one."""
    return code - (1 << 32) if code >= 1 << 31 else code


def main() -> int:
    command = os.environ["SSH_ORIGINAL_COMMAND"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SSH_", "PYTHON"))}
    process = subprocess.Popen(
        f'{SHELL} /c "{command}"',
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=environment,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    feeding = threading.Thread(target=pump, args=(0, os.dup(process.stdin.fileno())), daemon=True)
    process.stdin.close()
    feeding.start()
    reading = [
        threading.Thread(target=pump, args=(stream.fileno(), number))
        for number, stream in ((1, process.stdout), (2, process.stderr))
    ]
    for thread in reading:
        thread.start()
    for thread in reading:
        thread.join()
    return process.wait()


if __name__ == "__main__":
    file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)  # see ENTRY of fakes.windows
    code = main()
    sys.stdout.flush()
    os.write(file, str(code & 0xFF).encode())
    os._exit(exit_argument(code))
