"""The wallets on this machine."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from miner.daemon_call import in_words
from protocol.errors import SetupError


def open_wallet(name: str, hotkey: str, path: Path) -> Any:
    """Opens a wallet whose hotkey can sign and whose public coldkey is on this machine.

    An encrypted hotkey asks for its password on a terminal.

    Raises:
        SetupError: One of the two is missing or cannot be used. Names the cause and the command.
    """
    folder = _folder(path)
    import bittensor

    wallet = bittensor.Wallet(name=name, hotkey=hotkey, path=str(folder))
    names = shlex.join(
        ["--wallet.name", name, "--wallet.hotkey", hotkey, "--wallet.path", str(path)]
    )
    short = ["-w", name, "-H", hotkey]
    create = (
        f"btcli wallet create {names}\n"
        f"       (btcli of bittensor 11: btcli wallet create {shlex.join(short)})"
    )
    restore = f"restore it from a copy, or: btcli wallet regen-hotkey {names}"
    readers = {
        # Unlocked, it stays; `wallet.hotkey` would decrypt it again each time, for seconds.
        "hotkey": (wallet.hotkey_file, wallet.unlock_hotkey),
        "coldkeypub": (wallet.coldkeypub_file, lambda: wallet.coldkeypub),
    }
    for key, (file, read) in readers.items():
        _require_file(wallet, key, Path(file.path), create=create, restore=restore)
        if key == "hotkey":
            _require_password(file, restore)
        try:
            read()
        except Exception as error:
            fix = restore if key == "hotkey" else f"btcli wallet regen-coldkeypub {names}"
            if file.is_encrypted():
                variable = file.env_var_name()
                fix = f"give the right password (in {variable}, if that is set), or {fix}"
            raise SetupError(
                f"the {key} in {file.path} cannot be read: {in_words(error)}", fix=fix
            ) from error
    _require_private(wallet.hotkey, wallet.hotkey_file.path, restore)
    return wallet


def _folder(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise SetupError(
            f"--wallet.path is {path}, and this user has no home folder",
            fix="write the whole path of the wallets with --wallet.path",
        ) from error


def _require_file(wallet: Any, key: str, file: Path, *, create: str, restore: str) -> None:
    """Opens the file, since the library calls any file absent that it cannot see."""
    try:
        with file.open("rb") as stream:
            empty = not stream.read(1)
    except FileNotFoundError as error:
        if key == "hotkey" and Path(wallet.hotkeypub_file.path).exists():
            raise SetupError(
                f"the wallet has only the public half of its hotkey: {file} does not exist, "
                f"{wallet.hotkeypub_file.path} does; nothing can be signed with it",
                fix=f"copy the hotkey from where it was made to {file}, or {restore}",
            ) from error
        raise SetupError(f"the wallet has no {key}: {file} does not exist", fix=create) from error
    except OSError as error:
        raise SetupError(
            f"the {key} in {file} cannot be read: {error.strerror or error}",
            fix="run as the user that owns the wallet, or let this one read it: "
            f"ls -ld {file} {file.parent}"
            if isinstance(error, PermissionError)
            else "check --wallet.name, --wallet.hotkey and --wallet.path",
        ) from error
    if empty:
        raise SetupError(f"the {key} in {file} cannot be read: the file is empty", fix=restore)


def _require_password(file: Any, restore: str) -> None:
    variable = file.env_var_name()
    if file.is_encrypted() and variable not in os.environ and not _has_terminal():
        raise SetupError(
            f"the hotkey in {file.path} is encrypted, and there is no terminal to ask for its "
            "password",
            fix="start in a terminal, or keep an unencrypted hotkey for the service (only the "
            f"coldkey holds funds): {restore} --no-use-password",
        )


def _has_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _require_private(hotkey: Any, file: str, restore: str) -> None:
    try:
        hotkey.sign(b"splat-miner")
    except Exception as error:
        raise SetupError(
            f"the hotkey in {file} cannot sign: {in_words(error)}; the file holds the public half "
            "only",
            fix=f"copy the whole hotkey from where it was made, or {restore}",
        ) from error


def fresh_keypair() -> Any:
    """Makes a keypair that is kept nowhere."""
    import bittensor

    return bittensor.Keypair.create_from_mnemonic(bittensor.Keypair.generate_mnemonic())


def create_wallet(name: str, path: Path) -> tuple[str, str]:
    """Creates a wallet with new, unencrypted keys and the hotkey `default`, for trials.

    Only the public half of the coldkey is kept.

    Returns:
        SS58 addresses of its hotkey and its coldkey.
    """
    import bittensor

    wallet = bittensor.Wallet(name=name, hotkey="default", path=str(path))
    hotkey, coldkey = fresh_keypair(), fresh_keypair()
    wallet.set_hotkey(hotkey, encrypt=False, overwrite=True)
    wallet.set_coldkeypub(coldkey, encrypt=False, overwrite=True)
    return hotkey.ss58_address, coldkey.ss58_address
