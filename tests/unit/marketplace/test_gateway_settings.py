"""Settings, limits and start-up: wrong input ends in a coded error before anything runs."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from marketplace.app import listen
from marketplace.config import Settings, load_settings
from marketplace.limits import RateLimiter, TooManyRequestsError
from protocol.errors import ConfigError, UnreachableError


def test_settings_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text('port = 9000\nrpc_urls = ["http://a", "http://b"]\n[limits]\nmax_blob_bytes = 5\n')

    settings = load_settings(path)

    assert (settings.port, settings.rpc_urls, settings.limits.max_blob_bytes) == (9000, ("http://a", "http://b"), 5)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("prot = 9000", "prot"),
        ("port = 70000", "port"),
        ("rpc_urls = []", "rpc_urls"),
        ("[limits]\nmax_blob = 5", "limits.max_blob"),
        ("port = = 1", "TOML"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"C-70.*{complaint}"):
        load_settings(path)


def test_missing_settings_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"C-70.*nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml")


def test_database_is_in_the_data_directory_unless_given(tmp_path: Path) -> None:
    assert Settings(data_dir=tmp_path).database == f"sqlite:///{tmp_path / 'gateway.sqlite'}"
    assert Settings(database_url="postgresql+psycopg://db/avenue").database == "postgresql+psycopg://db/avenue"


def test_port_in_use_is_a_coded_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnreachableError, match=rf"N-10.*127\.0\.0\.1:{port}.*port"):
            listen("127.0.0.1", port)


def test_process_exits_with_the_errors_code_before_it_needs_a_chain(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        path.write_text(f'port = {taken.getsockname()[1]}\ndata_dir = "{tmp_path / "data"}"\n')
        answer = subprocess.run([sys.executable, "-m", "marketplace", str(path)], capture_output=True, text=True)
    assert answer.returncode == UnreachableError.exit_code
    assert "[N-10]" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "data").exists()


def test_limiter_refills_with_time_and_knows_its_callers_apart() -> None:
    now = [0.0]
    limiter = RateLimiter(60, clock=lambda: now[0])
    for _ in range(60):
        limiter.take("a")
    with pytest.raises(TooManyRequestsError) as refused:
        limiter.take("a")
    assert refused.value.retry_after_s == pytest.approx(1.0)
    limiter.take("b")

    now[0] += 1.0
    limiter.take("a")
    with pytest.raises(TooManyRequestsError):
        limiter.take("a")
