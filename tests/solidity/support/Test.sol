// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Vm} from "./Vm.sol";

/// @notice Assertions that show both values when they fail, and `bound` for fuzz inputs.
abstract contract Test {
    Vm internal constant vm = Vm(0x7109709ECfa91a80626fF3989D68f67F5b1DD12D);

    error NotEqual(string what, uint256 have, uint256 want);
    error NotEqualBytes32(string what, bytes32 have, bytes32 want);
    error NotEqualAddress(string what, address have, address want);
    error NotAtMost(string what, uint256 have, uint256 most);
    error NotTrue(string what);

    function assertEq(uint256 have, uint256 want, string memory what) internal pure {
        require(have == want, NotEqual(what, have, want));
    }

    function assertEq(bytes32 have, bytes32 want, string memory what) internal pure {
        require(have == want, NotEqualBytes32(what, have, want));
    }

    function assertEq(address have, address want, string memory what) internal pure {
        require(have == want, NotEqualAddress(what, have, want));
    }

    function assertLe(uint256 have, uint256 most, string memory what) internal pure {
        require(have <= most, NotAtMost(what, have, most));
    }

    function assertTrue(bool condition, string memory what) internal pure {
        require(condition, NotTrue(what));
    }

    /// @notice `x` folded into [low, high].
    function bound(uint256 x, uint256 low, uint256 high) internal pure returns (uint256) {
        require(low <= high, NotAtMost("bound", low, high));
        if (high - low == type(uint256).max) return x;
        return low + x % (high - low + 1);
    }

    /// @notice A key that secp256k1 accepts, from a name.
    function keyOf(string memory name) internal pure returns (uint256) {
        return uint256(keccak256(bytes(name))) >> 1;
    }

    /// @notice r, s, v: 65 bytes.
    function signed(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }
}
