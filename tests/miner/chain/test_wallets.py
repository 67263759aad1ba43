"""A wallet that cannot be used is refused with its true cause and the command that fixes it."""

import io
import json
from pathlib import Path
from typing import Any

import bittensor as bt
import pytest

from miner.chain.wallets import create_wallet, open_wallet
from protocol.errors import SetupError

PUBLIC = ("accountId", "publicKey", "ss58Address")


@pytest.fixture
def wallets(tmp_path: Path) -> Path:
    create_wallet("w", tmp_path)
    return tmp_path


def hotkey_file(wallets: Path) -> Path:
    return wallets / "w" / "hotkeys" / "default"


def refused(wallets: Path, hotkey: str = "default", name: str = "w") -> SetupError:
    with pytest.raises(SetupError) as caught:
        open_wallet(name, hotkey, wallets)
    assert str(wallets) in caught.value.problem
    return caught.value


def test_a_wallet_that_can_sign_is_opened(wallets: Path) -> None:
    wallet = open_wallet("w", "default", wallets)
    address = json.loads(hotkey_file(wallets).read_text())["ss58Address"]
    assert wallet.hotkey.ss58_address == address


def test_a_hotkey_file_with_a_public_key_only_is_refused(wallets: Path) -> None:
    file = hotkey_file(wallets)
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({key: whole[key] for key in PUBLIC}))
    error = refused(wallets)
    assert "cannot sign" in error.problem
    assert "public half only" in error.problem
    assert "regen-hotkey --wallet.name w --wallet.hotkey default" in error.fix


def test_a_wallet_with_nothing_but_hotkeypub_is_refused(wallets: Path) -> None:
    file = hotkey_file(wallets)
    file.rename(file.with_name("defaultpub.txt"))
    error = refused(wallets)
    assert "only the public half of its hotkey" in error.problem
    assert "regen-hotkey" in error.fix


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"null", b"{}", b"\xff\xfe\0", b"hello", b'{"ss58Address": 1}']
)
def test_a_file_that_is_no_key_is_refused(wallets: Path, content: bytes) -> None:
    hotkey_file(wallets).write_bytes(content)
    error = refused(wallets)
    assert "cannot be read" in error.problem
    assert "regen-hotkey" in error.fix
    assert "\n" not in error.problem


def test_an_empty_file_says_so(wallets: Path) -> None:
    hotkey_file(wallets).write_bytes(b"")
    assert "the file is empty" in refused(wallets).problem


def test_a_folder_in_the_place_of_a_key_says_so(wallets: Path) -> None:
    hotkey_file(wallets).unlink()
    hotkey_file(wallets).mkdir()
    assert "cannot be read: Is a directory" in refused(wallets).problem


def test_a_damaged_coldkeypub_names_its_own_command(wallets: Path) -> None:
    (wallets / "w" / "coldkeypub.txt").write_text("{")
    error = refused(wallets)
    assert "the coldkeypub in" in error.problem
    assert "regen-coldkeypub" in error.fix


def test_absent_wallets_hotkeys_and_coldkeypubs_name_the_btcli_command(wallets: Path) -> None:
    for error in (refused(wallets, name="x"), refused(wallets, hotkey="y")):
        assert "the wallet has no hotkey" in error.problem
        assert "btcli wallet create" in error.fix
    (wallets / "w" / "coldkeypub.txt").unlink()
    assert "the wallet has no coldkeypub" in refused(wallets).problem


def test_a_key_that_may_not_be_read_is_not_called_absent(
    wallets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Path, *_: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)  # The tests may run as root.
    error = refused(wallets)
    assert "cannot be read: Permission denied" in error.problem
    assert "ls -ld" in error.fix


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of wallets that tests only read: to encrypt a key takes seconds."""
    folder = tmp_path_factory.mktemp("encrypted")
    create_wallet("w", folder)
    bt.Wallet(name="w", hotkey="default", path=str(folder)).hotkey_file.encrypt("pass word")
    return folder


def test_an_encrypted_hotkey_without_a_terminal_is_refused_at_once(
    encrypted: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    error = refused(encrypted)
    assert "is encrypted" in error.problem
    assert "--no-use-password" in error.fix
    assert "password:" not in "".join(capfd.readouterr())


def test_an_encrypted_hotkey_opens_with_the_password_that_the_library_keeps(
    encrypted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bt.Wallet(name="w", hotkey="default", path=str(encrypted)).hotkey_file
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setenv(file.env_var_name(), "replaced by the library")
    file.save_password_to_env("pass word")
    wallet = open_wallet("w", "default", encrypted)
    # Decrypted once: a signature must not take seconds each time.
    monkeypatch.delenv(file.env_var_name())
    assert wallet.hotkey.sign(b"x")


def test_a_wrong_password_is_not_called_a_damaged_file(
    encrypted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bt.Wallet(name="w", hotkey="default", path=str(encrypted)).hotkey_file
    monkeypatch.setenv(file.env_var_name(), "no password")
    error = refused(encrypted)
    assert error.fix.startswith(f"give the right password (in {file.env_var_name()}, ")


def test_a_path_at_a_home_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(SetupError, match="has no home folder") as caught:
        open_wallet("w", "default", Path("~/.bittensor/wallets"))
    assert "--wallet.path" in caught.value.fix


def test_commands_can_be_pasted_whatever_the_names_are(wallets: Path) -> None:
    error = refused(wallets, name="a b;rm")
    assert "--wallet.name 'a b;rm'" in error.fix
