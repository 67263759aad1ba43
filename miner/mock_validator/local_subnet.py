"""A subnet in a folder, for demos and tests."""

import json
from dataclasses import dataclass
from pathlib import Path

from miner.chain.metagraph import Neuron
from miner.chain.wallets import create_wallet
from protocol.files import replace_file


@dataclass(frozen=True)
class LocalSubnet:
    """The result of `create_local_subnet`.

    Attributes:
        wallets: Folder for --wallet.path; it holds the wallets `miner` and `validator`, each with
            the hotkey `default`.
        neurons_file: File for --chain.file.
        miner_hotkey: SS58 address.
        validator_hotkey: SS58 address.
    """

    wallets: Path
    neurons_file: Path
    miner_hotkey: str
    validator_hotkey: str


def create_local_subnet(folder: Path, *, port: int, validator_port: int = 0) -> LocalSubnet:
    """Creates new, unencrypted keys for a miner at `port` and a validator with a permit."""
    wallets, neurons = folder / "wallets", []
    for uid, (name, its_port) in enumerate((("miner", port), ("validator", validator_port))):
        hotkey, coldkey = create_wallet(name, wallets)
        neurons.append(
            Neuron(
                uid=uid,
                hotkey=hotkey,
                coldkey=coldkey,
                ip="127.0.0.1",
                port=its_port,
                stake=10_000.0 if name == "validator" else 0.0,
                validator_permit=name == "validator",
            )
        )
    path = folder / "neurons.json"
    replace_file(path, json.dumps([n.model_dump() for n in neurons], indent=2).encode())
    return LocalSubnet(wallets, path, *(neuron.hotkey for neuron in neurons))
