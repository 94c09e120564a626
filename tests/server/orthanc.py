"""Debian's Orthanc with its DICOMweb plugin, on a loopback port, as the PACS of the tests."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

PROGRAM = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
IS_HERE = Path(PROGRAM).exists() and PLUGIN.exists()
REASON = "needs a PACS: apt-get install orthanc orthanc-dicomweb"


@contextlib.contextmanager
def orthanc(folder: Path):
    """Run an empty Orthanc that keeps its files in a folder; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "Name": "test", "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"), "Plugins": [str(PLUGIN)],
        "DicomServerEnabled": False, "HttpPort": port, "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False, "ConcurrentJobs": 1,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    config = folder / "orthanc.json"
    config.write_text(json.dumps(settings))
    with (folder / "orthanc.log").open("w") as log:
        program = subprocess.Popen([PROGRAM, str(config)], stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(f"{url}/system", program)
            yield url
        finally:
            program.terminate()
            program.wait(20)


def store(url: str, folder: Path) -> None:
    """Store the DICOM files of a folder."""
    for path in sorted(folder.iterdir()):
        kind = {"Content-Type": "application/dicom"}
        data = path.read_bytes()
        request = urllib.request.Request(f"{url}/instances", data, kind)  # noqa: S310
        urllib.request.urlopen(request, timeout=20).read()  # noqa: S310 - loopback


def _wait_for(url: str, program: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and program.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(url, timeout=2).read()  # noqa: S310 - loopback
            return
        time.sleep(0.1)
    raise AssertionError(f"Orthanc did not start, see its log beside {url}")
