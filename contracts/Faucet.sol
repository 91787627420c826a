// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {IFaucet} from "./interfaces/IFaucet.sol";

/// @title Faucet
/// @notice Test tokens for newcomers. Its promises are in IFaucet.
contract Faucet is IFaucet {
    using SafeERC20 for IERC20;

    IERC20 public immutable TOKEN;
    /// @inheritdoc IFaucet
    uint256 public immutable AMOUNT;
    /// @inheritdoc IFaucet
    uint256 public immutable COOLDOWN_S;

    /// @inheritdoc IFaucet
    mapping(address recipient => uint256) public nextDripAt;

    /// @param token What is given away.
    /// @param amount Given at a time, token wei.
    /// @param cooldown_s Time between two drips to one recipient, s.
    constructor(IERC20 token, uint256 amount, uint256 cooldown_s) {
        require(block.chainid != 1, MainnetRefused(block.chainid));
        require(address(token) != address(0), ZeroValue("token"));
        require(amount != 0, ZeroValue("amount"));
        TOKEN = token;
        AMOUNT = amount;
        COOLDOWN_S = cooldown_s;
    }

    /// @inheritdoc IFaucet
    function drip(address to) external {
        // Check: rested, and something left.
        uint256 next = nextDripAt[to];
        // Not `require`: it would work out the time left even where there is none, and underflow.
        if (block.timestamp < next) revert CoolingDown(to, next - block.timestamp);
        uint256 have = TOKEN.balanceOf(address(this));
        require(have >= AMOUNT, FaucetEmpty(have, AMOUNT));

        // Effect: start the recipient's cooldown.
        nextDripAt[to] = block.timestamp + COOLDOWN_S;
        emit Dripped(to, msg.sender, AMOUNT);

        // Interaction: pay.
        TOKEN.safeTransfer({to: to, value: AMOUNT});
    }
}
