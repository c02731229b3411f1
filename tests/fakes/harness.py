"""A harness for tests of leases: jobs that do nothing but use a device, and note whether they had it to themselves.

python tests/fakes/harness.py LAB FOLDER JOBS DEVICE...     one thread for each device
python tests/fakes/harness.py --crash LAB DEVICE            takes the device, says so, and stays until it is killed
"""

from __future__ import annotations

import fcntl
import sys
import threading
import time
from pathlib import Path

from devices.drivers.table import open_lab
from devices.lab import Lab
from devices.leases.choose import lease_key, open_store
from devices.leases.lease import LeaseTimes, Store, leased

TIMES = LeaseTimes(poll_s=0.002)


def work(lab: Lab, store: Store, folder: Path, device: str, jobs: int) -> None:
    key = lease_key(lab.device(device))
    for number in range(jobs):
        with (
            leased(store, key, device, f"job {number}", wait_s=300, times=TIMES) as lease,
            (folder / device).open("a") as file,
        ):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.write("overlap\n")
                continue
            time.sleep(0.001)
            lease.check()
            file.write("alone\n")
            file.flush()


def main(words: list[str]) -> None:
    if words[0] == "--crash":
        lab = open_lab(Path(words[1]))
        device = lab.device(words[2])
        store = open_store(lab, device)
        with leased(store, lease_key(device), words[2], "a job that crashes", times=LeaseTimes(beat_s=0.05)):
            print("taken", flush=True)
            time.sleep(600)
    lab, folder, jobs = open_lab(Path(words[0])), Path(words[1]), int(words[2])
    store = open_store(lab, lab.device(words[3]))
    threads = [threading.Thread(target=work, args=(lab, store, folder, device, jobs)) for device in words[3:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()


if __name__ == "__main__":
    main(sys.argv[1:])
