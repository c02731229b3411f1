"""lab.toml, strictly; the conditions of a machine; the page cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices.drivers.table import find_device
from devices.errors import LabError
from runtimes.system.conditions import read_conditions
from runtimes.system.pagecache import cached_share, drop


def test_this_machine_needs_no_file() -> None:
    assert find_device("local", None).transport == "local"


def test_a_lab_file_adds_devices(tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text('[device.desk]\ndescription = "the one on my desk"\nthreads = 4\n')
    assert find_device("desk", file).threads == 4
    assert find_device("local", file).threads is None
    with pytest.raises(LabError, match="unknown device 'desc'; known: desk, local"):
        find_device("desc", file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[device.a]\nthread = 1", "unknown key 'thread' (did you mean 'threads'?); known: transport, description"),
        ("[devices.a]", "unknown key 'devices' (did you mean 'device'?)"),
        ("[device.a]\nhost = 'pi5'", 'host is no key of this machine\'s own row; add transport = "ssh"'),
        ("[device.a]\nserial = 'x'", 'add transport = "adb"'),
        ("[device.a]\ntransport = 'usb'", "transport 'usb'; known: local, ssh, windows, adb"),
        ("[device.a]\nthreads = '4'", "threads: expected int, saw '4'"),
        ("[device.a]\nthreads = true", "threads: expected int, saw True"),
        ("[device.a]\nthreads = 0", "threads 0; give 1 to 1024"),
        ("[device.a]\nagent = []", "agent is an empty list"),
        ("[device.a]\nagent = 'python'", "agent: expected"),
        ("[device.a]\ntransport = 'ssh'", "lacks 'host'"),
        ("[device.a]\ntransport = 'ssh'\nhost = '-oProxyCommand=x'", "host '-oProxyCommand=x'; give a name"),
        ("[device.a]\ntransport = 'ssh'\nhost = 'a'\nport = 0", "port 0; give 1 to 65535"),
        (
            "[device.a]\ntransport = 'ssh'\nhost = 'a'\nserial = 'x'",
            "unknown key 'serial'; known: transport, description, threads, place, ready_below_c, meter, host",
        ),
        (
            "[device.a]\ntransport = 'openai'\nmodel = 'm'\nkey_env = 'K'\nmeter = ['watts']",
            "meter is for a device that is here",
        ),
        ("[device.a]\ntransport = 'ssh'\nhost = 'a'\ncache = '~/x'", "cache '~/x'; give a folder"),
        ("[device.a]\ntransport = 'adb'\nserail = 'x'", "unknown key 'serail' (did you mean 'serial'?)"),
        ("[device.a]\ntransport = 'adb'\nrunner = 'x'", "'x'; allowed: 'agent', 'executorch-agent', 'llama_main'"),
        (
            "[device.a]\ntransport = 'windows'\nhost = 'a'\nadaptor = '0'",
            "unknown key 'adaptor' (did you mean 'adapter'?)",
        ),
        ("[device.a]\ntransport = 'windows'\nhost = 'a'\npackages = 'cuda'", "'cuda'; allowed: 'winml', 'directml'"),
        ("[device.a]\ntransport = 'windows'\nhost = 'a'\nadapter = 0", "adapter: expected str, saw 0"),
        ("[device.a]\nplace = 'a'", "device.a: has a place, and [leases] names no coordinator = 'HOST:PORT'"),
        ("[device.a]\nready_below_c = 400", "ready_below_c 400; give degrees Celsius above 0, up to 150"),
        ("[leases]\ncordinator = 'a'", "leases: unknown key 'cordinator' (did you mean 'coordinator'?)"),
        ("device = 3", "write each device as a table"),
        ("[device", "is not TOML"),
    ],
)
def test_a_wrong_lab_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(text)
    with pytest.raises(LabError) as error:
        find_device("a", file)
    assert said in str(error.value)


def test_conditions_of_this_machine() -> None:
    seen = read_conditions()
    assert seen.logical_cores is not None and seen.logical_cores >= 1
    assert seen.system.split()[0] == "Linux"
    assert seen.busy_share is None or 0 <= seen.busy_share <= 1
    assert seen.memory_total_bytes is not None and seen.memory_total_bytes > 2**28


def test_conditions_of_a_pi(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 108.00\n",
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "proc/loadavg": "0.25 0.20 0.10 1/100 1\n",
        "proc/meminfo": "MemTotal: 8000 kB\nMemAvailable: 6000 kB\nSwapTotal: 200 kB\nSwapFree: 150 kB\n",
        "proc/sys/kernel/random/boot_id": "abc\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "48850\n",
        "sys/class/thermal/thermal_zone1/type": "off\n",
        "sys/class/thermal/thermal_zone1/temp": "\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    seen = read_conditions(tmp_path)
    assert seen.cpu_model == "Raspberry Pi 5 Model B Rev 1.0"
    assert seen.frequency_hz == (1_500_000_000,)
    assert seen.temperature_c == {"thermal_zone0 cpu-thermal": 48.85}
    assert (seen.governor, seen.boot_id, seen.load_average_1min) == ("ondemand", "abc", 0.25)
    assert (seen.memory_available_bytes, seen.swap_used_bytes) == (6000 * 1024, 50 * 1024)


def test_conditions_where_nothing_can_be_read(tmp_path: Path) -> None:
    seen = read_conditions(tmp_path)
    unknown = (seen.governor, seen.temperature_c, seen.frequency_hz, seen.swap_used_bytes, seen.boot_id)
    assert unknown == (None,) * 5


def test_a_dropped_file_is_cold_until_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(4 << 20))
    if cached_share([file]) is None:
        pytest.skip("this file system does not tell what is cached; set TMPDIR to a folder on a disk")
    drop([file])
    assert cached_share([file]) == 0.0
    file.read_bytes()
    assert cached_share([file]) == 1.0


def test_an_empty_or_missing_file_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert cached_share([tmp_path / "empty"]) is None
    assert cached_share([tmp_path / "missing"]) is None
