"""The wallets on this machine."""

from pathlib import Path
from typing import Any

from miner.daemon_call import in_words
from protocol.errors import SetupError


def open_wallet(name: str, hotkey: str, path: Path) -> Any:
    """Opens a wallet whose hotkey and public coldkey are on this machine.

    Raises:
        SetupError: One of the two is missing or cannot be read. Names the btcli command.
    """
    import bittensor

    wallet = bittensor.Wallet(name=name, hotkey=hotkey, path=str(path))
    create = (
        f"btcli wallet create --wallet.name {name} --wallet.hotkey {hotkey} --wallet.path {path}\n"
        f"       (btcli of bittensor 11: btcli wallet create -w {name} -H {hotkey})"
    )
    for key, file in (("hotkey", wallet.hotkey_file), ("coldkeypub", wallet.coldkeypub_file)):
        if not file.exists_on_device():
            raise SetupError(f"the wallet has no {key}: {file.path} does not exist", fix=create)
        try:
            getattr(wallet, key)
        except Exception as error:
            raise SetupError(
                f"the {key} in {file.path} cannot be read: {in_words(error)}",
                fix="check the file and its password, or regenerate it with btcli wallet",
            ) from error
    return wallet


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
