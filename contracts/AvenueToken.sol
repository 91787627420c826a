// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {IAvenueToken} from "./interfaces/IAvenueToken.sol";

/// @title AvenueToken
/// @notice The currency of the market, minted once. Its promises are in IAvenueToken.
contract AvenueToken is IAvenueToken, ERC20Permit {
    /// @inheritdoc IAvenueToken
    uint256 public constant MAX_SUPPLY = 1_000_000_000e18;

    /// @param recipients Who holds the supply at genesis.
    /// @param amounts What each of them is given, token wei.
    constructor(address[] memory recipients, uint256[] memory amounts) ERC20("Avenue", "AVN") ERC20Permit("Avenue") {
        // Check: every recipient has its amount.
        require(recipients.length == amounts.length, LengthMismatch(recipients.length, amounts.length));

        // Effect: mint; there is no other place that does.
        for (uint256 i = 0; i < recipients.length; i++) {
            _mint(recipients[i], amounts[i]);
        }

        // INVARIANT: the supply never exceeds the cap.
        require(totalSupply() <= MAX_SUPPLY, CapExceeded(totalSupply(), MAX_SUPPLY));
    }

    /// @inheritdoc IAvenueToken
    function burn(uint256 amount) external {
        _burn(msg.sender, amount);
    }

    /// @inheritdoc IERC20Permit
    function nonces(address owner) public view override(IERC20Permit, ERC20Permit) returns (uint256) {
        return super.nonces(owner);
    }
}
