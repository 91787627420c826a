// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IAvenueToken} from "../interfaces/IAvenueToken.sol";

/// @title What the contracts assume their token is not
/// @notice For tests only. It can call anybody back in the middle of a transfer, and it can fail without reverting.
contract HostileToken is IAvenueToken, ERC20Permit {
    uint256 public constant MAX_SUPPLY = type(uint96).max;

    address private _target;
    bytes private _call;
    bool private _silentlyFails;
    /// @notice Whether the last call back was let through.
    bool public reentered;

    constructor() ERC20("Hostile", "HST") ERC20Permit("Hostile") {
        _mint(msg.sender, MAX_SUPPLY);
    }

    /// @notice From now on every transfer makes this call before it moves anything.
    function callBack(address target, bytes calldata call) external {
        (_target, _call) = (target, call);
    }

    /// @notice From now on transfers move nothing and say so only by their return value.
    function failSilently() external {
        _silentlyFails = true;
    }

    function transfer(address to, uint256 amount) public override(ERC20, IERC20) returns (bool) {
        return _attack() && super.transfer(to, amount);
    }

    function transferFrom(address from, address to, uint256 amount) public override(ERC20, IERC20) returns (bool) {
        return _attack() && super.transferFrom(from, to, amount);
    }

    function burn(uint256 amount) external {
        _attack();
        _burn(msg.sender, amount);
    }

    function nonces(address owner) public view override(IERC20Permit, ERC20Permit) returns (uint256) {
        return super.nonces(owner);
    }

    function _attack() private returns (bool) {
        if (_target != address(0)) {
            bytes memory call = _call;
            address target = _target;
            _target = address(0);
            (reentered,) = target.call(call);
            _target = target;
        }
        return !_silentlyFails;
    }
}
