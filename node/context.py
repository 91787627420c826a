"""What an agent or a command works with: configuration, keys, chain, gateway, opened when first asked for.

Nothing is connected, decrypted or imported (web3 takes most of a second) before it is needed, so `avenue keys list`
works without a network and `avenue chain info` without a password. Safe to share between threads: each part is opened
once, under a lock. Close it, or use it in a `with`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from node.config import LOCAL_CHAIN_ID, LoadedConfig, NetworkConfig, NodeConfig, Role
from node.keys import Keystore, PasswordSource, dev_account, dev_encryption_key
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount
    from eth_typing import ChecksumAddress
    from web3 import Web3

    from node.gateway import GatewayClient
    from protocol.chain import ChainClient
    from protocol.deployments import Deployment
    from protocol.fees import SendPolicy
    from protocol.journal import Journal
    from protocol.messages import Domain
    from protocol.sealing import EncryptionKey
    from protocol.sender import Sender

_T = TypeVar("_T")

ACCOUNT_KEY = {Role.COMPUTE: "operator", Role.REQUEST: "requester", Role.DEPLOYER: "deployer"}
"""Which key signs for a role. A compute node's owner key is apart: `NodeContext.owner_account`."""


class NodeContext:
    """One identity on one network. `role` decides which key `account` is; it defaults to the configured one."""

    def __init__(
        self,
        loaded: LoadedConfig,
        *,
        role: Role | None = None,
        passwords: PasswordSource | None = None,
        dev_account_index: int | None = None,
    ) -> None:
        self.loaded = loaded
        self.config: NodeConfig = loaded.config
        self.network: NetworkConfig = loaded.config.selected_network()
        self.role = role or loaded.config.role
        self.home: Path = loaded.home
        self.keystore = Keystore(loaded.home)
        self.dev_account_index = dev_account_index
        self._passwords = passwords or PasswordSource()
        self._opened: dict[str, Any] = {}
        self._lock = threading.RLock()

    # Where things are

    @property
    def data_dir(self) -> Path:
        """Journal, checkpoints, blobs of this network; private to this user. Made when first asked for."""

        def make() -> Path:
            path = self.loaded.data_dir / str(self.network.chain_id)
            if self.dev_account_index is not None:  # several development accounts may share one home
                path /= f"dev-{self.dev_account_index}"
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(
                    f"cannot make the data directory {path}: {error.strerror}", code="C-01", hint="set data_dir"
                ) from error
            return path

        return self._once("data_dir", make)

    @property
    def deployments_dir(self) -> Path:
        """Deployment records of chains that the package does not ship."""
        configured = self.network.deployments_dir
        return Path(configured).expanduser() if configured else self.home / "deployments"

    # The chain

    @property
    def w3(self) -> Web3:
        """Connected, its chain id checked. Raises ConfigError C-06 without rpc_urls, UnreachableError."""

        def make() -> Web3:
            from protocol.rpc import connect

            if not self.network.rpc_urls:
                name = self.config.network
                raise ConfigError(
                    f"network {name!r} has no RPC endpoint",
                    code="C-06",
                    hint=f"avenue config set networks.{name}.rpc_urls https://...",
                )
            return connect(self.network.rpc_urls, self.network.chain_id)

        return self._once("w3", make)

    @property
    def deployment(self) -> Deployment:
        """Where the contracts are. Raises ConfigError if the network has no deployment record."""

        def make() -> Deployment:
            from protocol import deployments

            return deployments.load(self.network.chain_id, self.deployments_dir)

        return self._once("deployment", make)

    @property
    def client(self) -> ChainClient:
        """Typed reads of this deployment."""

        def make() -> ChainClient:
            from protocol.chain import ChainClient

            return ChainClient(self.w3, self.deployment)

        return self._once("client", make)

    @property
    def journal(self) -> Journal:
        """Write-ahead journal of this home's transactions on this network."""

        def make() -> Journal:
            from protocol.journal import Journal

            return Journal(self.data_dir / "journal.sqlite")

        return self._once("journal", make)

    @property
    def send_policy(self) -> SendPolicy:
        """The configured fee cap, the rest as protocol/fees.py has it."""
        from protocol.fees import SendPolicy

        return SendPolicy(fee_cap_wei=self.config.fees.max_fee_wei)

    def sender_for(self, account: LocalAccount) -> Sender:
        """The sender of `account`; the same object each time, since it holds the account's nonce lock."""

        def make() -> Sender:
            from protocol.sender import Sender

            return Sender(self.client, account, self.journal, self.send_policy)

        return self._once(f"sender {account.address}", make)

    # Keys

    @property
    def account(self) -> LocalAccount:
        """The key that works for the role: operator, requester or deployer. Raises ConfigError as node/keys.py."""
        return self._once("account", lambda: self._account(ACCOUNT_KEY[self.role]))

    @property
    def owner_account(self) -> LocalAccount | None:
        """The node's cold key if it is in this keystore; None if it is kept elsewhere, as it should be."""

        def make() -> LocalAccount | None:
            if self.dev_account_index is None and not self.keystore.has("owner"):
                return None
            return self._account("owner")

        return self._once("owner_account", make)

    @property
    def address(self) -> ChecksumAddress:
        """Address of `account`, without decrypting it."""
        return self.account.address if self.dev_account_index is not None else self._address(ACCOUNT_KEY[self.role])

    @property
    def owner_address(self) -> ChecksumAddress | None:
        """Address of `owner_account`, without decrypting it."""
        if self.dev_account_index is not None:
            return self.account.address
        return self._address("owner") if self.keystore.has("owner") else None

    @property
    def encryption_key(self) -> EncryptionKey:
        """X25519 pair to which content keys are wrapped for this node or requester."""

        def make() -> EncryptionKey:
            from protocol.sealing import EncryptionKey

            if self.dev_account_index is not None:
                return EncryptionKey.from_bytes(dev_encryption_key(self.account))
            password = self._password()
            return EncryptionKey.from_bytes(self.keystore.load_encryption_key(password))

        return self._once("encryption_key", make)

    # The gateway

    @property
    def domain(self) -> Domain:
        """EIP-712 domain of this market's messages."""

        def make() -> Domain:
            from protocol.messages import Domain

            return Domain(self.network.chain_id, self.deployment.market)

        return self._once("domain", make)

    @property
    def gateway(self) -> GatewayClient:
        """Client of the configured gateway, signing with `account`. Raises ConfigError C-07 if none is configured."""
        return self._once("gateway", lambda: self._gateway_client(self.account))

    @property
    def reading_gateway(self) -> GatewayClient:
        """The same for whoever only reads: no key is opened."""
        return self._once("reading_gateway", lambda: self._gateway_client(None))

    def _gateway_client(self, account: LocalAccount | None) -> GatewayClient:
        from node.gateway import GatewayClient

        if not self.network.gateway_url:
            name = self.config.network
            raise ConfigError(
                f"network {name!r} has no gateway",
                code="C-07",
                hint=f"avenue config set networks.{name}.gateway_url https://...",
            )
        return GatewayClient(self.network.gateway_url, account, self.domain)

    def close(self) -> None:
        """Closes what was opened. Idempotent."""
        with self._lock:
            opened, self._opened = self._opened, {}
        for part in opened.values():
            close = getattr(part, "close", None) or getattr(getattr(part, "provider", None), "close", None)
            if callable(close):
                close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _account(self, name: str) -> LocalAccount:
        if self.dev_account_index is not None:
            if self.network.chain_id == LOCAL_CHAIN_ID:
                live_chain_id = int(self.w3.eth.chain_id)  # what the chain says, not what a file says
            else:
                live_chain_id = self.network.chain_id
            return dev_account(self.dev_account_index, live_chain_id)
        if not self.keystore.has(name):
            self.keystore.info(name)  # says what is missing before anybody is asked for a password
        return self.keystore.load_account(name, self._password())

    def _password(self) -> str:
        return self._once("password", lambda: self._passwords.read("open the keystore"))

    def _address(self, name: str) -> ChecksumAddress:
        return cast("ChecksumAddress", self.keystore.info(name).public)

    def _once(self, name: str, make: Callable[[], _T]) -> _T:
        with self._lock:
            if name not in self._opened:
                self._opened[name] = make()
            return cast(_T, self._opened[name])
