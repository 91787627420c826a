"""Where a configuration value comes from, and what happens to one that is wrong."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import LOCAL_CHAIN_ID, Role, home_directory, load_config, unknown_key, valid_keys
from node.config_file import render, set_value
from protocol.errors import ConfigError


def write(home: Path, text: str) -> Path:
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(text, encoding="utf-8")
    return home


def test_defaults_need_no_file(tmp_path: Path) -> None:
    loaded = load_config(tmp_path, environ={})
    assert loaded.config.network == "local"
    assert loaded.config.selected_network().chain_id == LOCAL_CHAIN_ID
    assert loaded.config.role is Role.COMPUTE
    assert loaded.origins == {}
    assert loaded.data_dir == tmp_path / "data"


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    write(tmp_path, "[compute]\nthreads = 2\nmax_parallel_units = 2\npoll_interval_s = 2\n")
    environ = {"AVENUE_COMPUTE__THREADS": "3", "AVENUE_COMPUTE__MAX_PARALLEL_UNITS": "3"}
    loaded = load_config(tmp_path, flags={"compute.threads": 4}, environ=environ)
    compute = loaded.config.compute
    assert (compute.threads, compute.max_parallel_units, compute.poll_interval_s) == (4, 3, 2)
    assert compute.stake == "1000"
    assert loaded.origins == {
        "compute.threads": "flag",
        "compute.max_parallel_units": "AVENUE_COMPUTE__MAX_PARALLEL_UNITS",
        "compute.poll_interval_s": str(tmp_path / "config.toml"),
    }


def test_short_names_mean_the_selected_network(tmp_path: Path) -> None:
    environ = {"AVENUE_NETWORK": "sepolia", "AVENUE_RPC_URLS": "https://a.example, https://b.example/"}
    loaded = load_config(tmp_path, environ=environ)
    assert loaded.config.selected_network().rpc_urls == ("https://a.example", "https://b.example")
    assert loaded.config.networks["local"].rpc_urls == ("http://127.0.0.1:8545",)
    flagged = load_config(tmp_path, flags={"rpc_urls": ["https://c.example"]}, environ=environ)
    assert flagged.config.selected_network().rpc_urls == ("https://c.example",)


def test_a_part_of_a_network_keeps_the_rest(tmp_path: Path) -> None:
    write(tmp_path, '[networks.sepolia]\nrpc_urls = ["https://a.example"]\n')
    sepolia = load_config(tmp_path, environ={}).config.networks["sepolia"]
    assert (sepolia.chain_id, sepolia.confirmations) == (11155111, 2)


def test_a_new_network_can_be_added(tmp_path: Path) -> None:
    write(tmp_path, 'network = "hoodi"\n[networks.hoodi]\nchain_id = 560048\nrpc_urls = ["https://h.example"]\n')
    assert load_config(tmp_path, environ={}).config.selected_network().chain_id == 560048


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("[compute]\nthreds = 2\n", "C-03", ("compute.threds", "compute.threads")),
        ("threads = 2\n", "C-03", ("'threads'", "compute.threads")),
        ("[compute]\nmin_price = 2\n", "C-03", ("compute.min_price", "compute.min_unit_price")),
        ('[networks.sepolia]\nrpc_url = "x"\n', "C-03", ("networks.sepolia.rpc_url", "networks.sepolia.rpc_urls")),
        ("compute = 3\n", "C-03", ("'compute'",)),
        ("[compute]\nthreads = 0\n", "C-04", ("compute.threads",)),
        ("[compute]\nmin_unit_price = 0.1\n", "C-04", ("compute.min_unit_price", "text")),
        ('[compute]\nmin_unit_price = "-1"\n', "C-04", ("compute.min_unit_price",)),
        ('[fees]\nmax_fee_gwei = "0"\n', "C-04", ("fees.max_fee_gwei",)),
        ('[fees]\nmax_fee_gwei = "lots"\n', "C-04", ("fees.max_fee_gwei",)),
        ('[networks.local]\nrpc_urls = ["ftp://x"]\n', "C-04", ("networks.local.rpc_urls",)),
        ('role = "king"\n', "C-04", ("role",)),
        ('network = "mars"\n', "C-05", ("mars", "local, sepolia")),
        ("network = [1]\n", "C-04", ("network",)),
        ("network = \n", "C-02", ("config.toml",)),
    ],
)
def test_a_wrong_file_is_refused_with_the_key_and_the_way_out(
    tmp_path: Path, text: str, code: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), environ={})
    assert caught.value.code == code
    assert caught.value.hint
    for word in words:
        assert word in str(caught.value)


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="AVENUE_COMPUTE__THREDS") as caught:
        load_config(tmp_path, environ={"AVENUE_COMPUTE__THREDS": "2"})
    assert caught.value.hint == "did you mean compute.threads?"
    with pytest.raises(ConfigError, match="AVENUE_COMPUTE__THREADS") as caught:
        load_config(tmp_path, environ={"AVENUE_COMPUTE__THREADS": "many"})
    assert caught.value.code == "C-04"


@given(st.sampled_from([key for key in valid_keys() if "NAME" not in key]), st.data())
def test_a_key_with_one_letter_missing_is_guessed(key: str, data: st.DataObject) -> None:
    section, dot, name = key.rpartition(".")
    position = data.draw(st.integers(0, len(name) - 1))
    wrong = section + dot + name[:position] + name[position + 1 :]
    if wrong not in valid_keys():
        assert unknown_key(wrong, "a test").hint.startswith("did you mean ")


def test_the_template_is_the_defaults(tmp_path: Path) -> None:
    loaded = load_config(write(tmp_path, render({})), environ={})
    assert loaded.config == load_config(tmp_path / "nowhere", environ={}).config


def test_every_key_stands_in_the_template() -> None:
    text = render({})
    for key in valid_keys():
        assert f"{key.rpartition('.')[2]} =" in text


def test_set_keeps_comments_and_other_values(tmp_path: Path) -> None:
    write(tmp_path, "# mine\n[compute]\n# two, for the noise\nthreads = 2\n\n[log]\nlevel = 'debug'\n")
    set_value(tmp_path, "compute.threads", "8")
    set_value(tmp_path, "compute.stake", "1500.5")
    set_value(tmp_path, "networks.sepolia.rpc_urls", "https://a.example,https://b.example")
    set_value(tmp_path, "network", "sepolia")
    text = (tmp_path / "config.toml").read_text()
    assert "# mine\n" in text and "# two, for the noise\nthreads = 8\n" in text
    config = load_config(tmp_path, environ={}).config
    assert (config.compute.threads, config.compute.stake, config.log.level) == (8, "1500.5", "debug")
    assert config.selected_network().rpc_urls == ("https://a.example", "https://b.example")


def test_set_uncomments_the_template_line(tmp_path: Path) -> None:
    write(tmp_path, render({}))
    set_value(tmp_path, "compute.threads", "8")
    lines = (tmp_path / "config.toml").read_text().splitlines()
    assert lines.count("threads = 8") == 1
    assert "# threads = 1" in lines, "the one of [request] stays"


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("compute.threds", "8", "C-03"),
        ("compute", "8", "C-03"),
        ("compute.threads", "eight", "C-04"),
        ("network", "mars", "C-05"),
        ("networks.local", "8", "C-03"),
    ],
)
def test_set_refuses_and_leaves_the_file_alone(tmp_path: Path, key: str, value: str, code: str) -> None:
    before = render({})
    write(tmp_path, before)
    with pytest.raises(ConfigError) as caught:
        set_value(tmp_path, key, value)
    assert caught.value.code == code
    assert (tmp_path / "config.toml").read_text() == before


def test_set_refuses_what_it_cannot_edit(tmp_path: Path) -> None:
    write(tmp_path, "compute = { threads = 2 }\n")
    with pytest.raises(ConfigError):
        set_value(tmp_path, "compute.threads", "8")
    assert tomllib.loads((tmp_path / "config.toml").read_text()) == {"compute": {"threads": 2}}


def test_home_is_flag_then_environment_then_platform(tmp_path: Path) -> None:
    environ = {"AVENUE_HOME": str(tmp_path / "env")}
    assert home_directory(tmp_path / "flag", environ) == tmp_path / "flag"
    assert home_directory(None, environ) == tmp_path / "env"
    assert home_directory(None, {}).name == "avenue"


def test_configuration_needs_neither_torch_nor_web3() -> None:
    code = "import sys, node.config, node.keys, node.context; print([m for m in ('torch', 'web3') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
