"""ExecuTorch's official example runner, `llama_main`, for tests: its command line around its own C++ text runner.

    python -m fakes.llama_main --model_path=M.pte --tokenizer_path=tokenizer.json --prompt=TEXT ...

The flags and the output are those of examples/models/llama/main.cpp (executorch 1.4): gflags' syntax, the prompt
echoed, the answer, and the PyTorchObserver line, which the C++ runner prints itself. It stands in for the program, not
for its speed.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# name -> default, which gives its type.
FLAGS: Mapping[str, str | int | float | bool] = {
    "model_path": "llama2.pte",
    "data_paths": "",
    "tokenizer_path": "tokenizer.bin",
    "prompt": "The answer to the ultimate question is",
    "prompt_file": "",
    "temperature": 0.8,
    "seq_len": 128,
    "max_new_tokens": -1,
    "cpu_threads": -1,
    "num_bos": 0,
    "num_eos": 0,
    "warmup": False,
    "ignore_eos": False,
    "etdump_path": "etdump.in",
    "method_name": "forward",
}


def read_flags(arguments: list[str]) -> argparse.Namespace:
    """As gflags: --name=value, --name value, and --name for a boolean."""
    parser = argparse.ArgumentParser(prog="llama_main", allow_abbrev=False)
    for name, default in FLAGS.items():
        if isinstance(default, bool):
            parser.add_argument(f"--{name}", nargs="?", const=True, default=default, type=lambda text: text == "true")
        else:
            parser.add_argument(f"--{name}", default=default, type=type(default))
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Generate once; exit 0."""
    flags = read_flags(arguments)
    prompt = flags.prompt
    if flags.prompt_file:
        prompt = Path(flags.prompt_file).read_bytes().decode()
    library = _load()
    if flags.cpu_threads > 0:
        library._unsafe_reset_threadpool(flags.cpu_threads)
    (_ignore_eos if flags.ignore_eos else _generate)(prompt, flags)
    sys.stdout.flush()
    os._exit(0)  # torch's and ExecuTorch's thread pools need not be shut down


def _load() -> Any:
    os.environ["OMP_NUM_THREADS"] = "1"  # see runtimes.engines.executorch_engine
    import executorch.extension.llm.runner  # noqa: F401 (part of what takes the time)

    from runtimes.engines.executorch_engine import load_library

    return load_library()


def _generate(prompt: str, flags: argparse.Namespace) -> None:
    """ExecuTorch's own runner. It prints everything itself."""
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

    config = GenerationConfig(
        echo=True,
        temperature=flags.temperature,
        max_new_tokens=flags.max_new_tokens,
        seq_len=-1 if flags.max_new_tokens > 0 else flags.seq_len,
        num_bos=flags.num_bos,
        num_eos=flags.num_eos,
    )
    runner = TextLLMRunner(flags.model_path, flags.tokenizer_path)
    if flags.warmup:
        runner.generate(prompt, GenerationConfig(echo=False, max_new_tokens=1, warming=True), lambda piece: None)
    runner.generate(prompt, config, lambda piece: None)


def _ignore_eos(prompt: str, flags: argparse.Namespace) -> None:
    """The runner's Python bindings lack ignore_eos: our engine on the same program, with the same output."""
    from tokenizers import Tokenizer

    from export.artifact import open_artifact
    from runtimes.loop.tokens import NewToken, TokenRequest
    from runtimes.registry import open_tokens

    began_ms = time.time_ns() // 1_000_000
    tokens = open_tokens(open_artifact(Path(flags.model_path).parent))
    loaded_ms = time.time_ns() // 1_000_000
    tokenizer = Tokenizer.from_file(flags.tokenizer_path)
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    records = list(tokens.stream(TokenRequest(ids=ids, max_new_tokens=flags.max_new_tokens)))
    new = [record for record in records if isinstance(record, NewToken)]
    answer = tokenizer.decode(ids + [record.id for record in new], skip_special_tokens=False)
    before = tokenizer.decode(ids, skip_special_tokens=False)
    first_ms, last_ms = (loaded_ms + int(1000 * (record.at_s or 0)) for record in (new[0], new[-1]))
    observed = {
        "prompt_tokens": len(ids),
        "generated_tokens": len(new) - 1,
        "model_load_start_ms": began_ms,
        "model_load_end_ms": loaded_ms,
        "inference_start_ms": loaded_ms,
        "inference_end_ms": last_ms,
        "prompt_eval_end_ms": first_ms,
        "first_token_ms": first_ms,
        "aggregate_sampling_time_ms": 0,
        "SCALING_FACTOR_UNITS_PER_SECOND": 1000,
    }
    print(f"{prompt}{answer.removeprefix(before)}\n\nPyTorchObserver {json.dumps(observed)}", flush=True)


# The program that a test pushes: starting Python with torch takes 2 s, so it hands its arguments and files to a process
# that has both loaded, which forks.
_CLIENT = """#!{python} -SE
import socket, sys
wire = socket.socket(socket.AF_UNIX)
wire.connect({path!r})
socket.send_fds(wire, ["\\0".join(sys.argv[1:]).encode("utf-8", "surrogateescape") + b"\\0"], [0, 1, 2])
sys.exit(int(wire.recv(8) or b"137"))
"""


def write_program(program: Path, path: Path) -> None:
    """A `llama_main` that is served by `serve(path)`."""
    program.write_text(_CLIENT.format(python=sys.executable, path=str(path)), encoding="utf-8")
    program.chmod(0o755)


def serve(path: Path) -> None:
    """Load the libraries, then fork for every program that connects; until this process is ended."""
    _load()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    while True:
        wire, _ = listener.accept()
        if os.fork() == 0:
            if os.fork() == 0:  # the grandchild works; the child tells how it ended
                _become(wire)
            _, status = os.wait()
            wire.send(str(os.waitstatus_to_exitcode(status) % 256).encode())
            os._exit(0)
        wire.close()


def _become(wire: socket.socket) -> None:
    data, files, _, _ = socket.recv_fds(wire, 1 << 20, 3)
    for number, file in enumerate(files):
        os.dup2(file, number)
    try:
        main(data.decode("utf-8", "surrogateescape").split("\0")[:-1])
    except SystemExit as end:
        print(end.code, file=sys.stderr, flush=True)
        os._exit(1)
    except BaseException:
        traceback.print_exc()
        os._exit(70)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]))
    main(sys.argv[1:])
