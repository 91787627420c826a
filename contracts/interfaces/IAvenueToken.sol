// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";

/// @title The currency of the market
/// @notice ERC-20 with ERC-2612 permit, 18 decimals. The whole supply is minted once, by the constructor; from then on
/// it only falls, by burning. Nobody owns the contract.
interface IAvenueToken is IERC20, IERC20Permit {
    /// @notice Thrown when recipients and amounts are not paired.
    error LengthMismatch(uint256 recipients, uint256 amounts);
    /// @notice Thrown when the genesis amounts sum to more than MAX_SUPPLY.
    error CapExceeded(uint256 total, uint256 cap);

    /// @notice Destroys the caller's own tokens.
    function burn(uint256 amount) external;

    /// @notice What the supply can never exceed, token wei. It fits uint96, and so does every sum of amounts.
    function MAX_SUPPLY() external view returns (uint256);
}
