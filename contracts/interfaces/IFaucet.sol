// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Test tokens for newcomers
/// @notice Gives a fixed amount to any address, once per cooldown, for as long as it holds any. Refuses to be
/// deployed on mainnet.
interface IFaucet {
    event Dripped(address indexed to, address indexed caller, uint256 amount);

    /// @notice Thrown when the faucet is deployed where tokens are worth something.
    error MainnetRefused(uint256 chainId);
    /// @notice Thrown when an argument that must not be zero is zero.
    error ZeroValue(string what);
    /// @notice Thrown when the recipient was served less than a cooldown ago.
    error CoolingDown(address to, uint256 secondsLeft);
    /// @notice Thrown when the faucet holds less than one drip.
    error FaucetEmpty(uint256 have, uint256 need);

    /// @notice Sends AMOUNT to `to`. Anybody may call; the cooldown is the recipient's.
    function drip(address to) external;

    /// @notice When `to` may be served again, unix s; zero if it never was.
    function nextDripAt(address to) external view returns (uint256);

    /// @notice Given at a time, token wei.
    function AMOUNT() external view returns (uint256);

    /// @notice Time between two drips to one recipient, s.
    function COOLDOWN_S() external view returns (uint256);
}
