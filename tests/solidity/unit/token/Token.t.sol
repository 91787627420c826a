// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {AvenueToken} from "../../../../contracts/AvenueToken.sol";
import {Faucet} from "../../../../contracts/Faucet.sol";
import {IAvenueToken} from "../../../../contracts/interfaces/IAvenueToken.sol";
import {IFaucet} from "../../../../contracts/interfaces/IFaucet.sol";
import {World} from "../../support/World.sol";

contract TokenTest is World {
    uint256 private constant CAP = 1_000_000_000e18;

    function testFuzz_the_constructor_mints_each_amount_to_its_recipient(uint256 a, uint256 b) external {
        a = bound(a, 0, CAP);
        b = bound(b, 0, CAP - a);
        AvenueToken fresh = _mint(a, b);
        assertEq(fresh.balanceOf(requester), a, "a");
        assertEq(fresh.balanceOf(stranger), b, "b");
        assertEq(fresh.totalSupply(), a + b, "supply");
        assertEq(keccak256(bytes(fresh.name())), keccak256("Avenue"), "name");
        assertEq(keccak256(bytes(fresh.symbol())), keccak256("AVN"), "symbol");
        assertEq(fresh.decimals(), 18, "decimals");
        assertEq(fresh.MAX_SUPPLY(), CAP, "cap");
    }

    function testFuzz_the_constructor_reverts_above_the_cap(uint256 a, uint256 b) external {
        a = bound(a, 1, CAP);
        b = bound(b, CAP - a + 1, CAP);
        vm.expectRevert(abi.encodeWithSelector(IAvenueToken.CapExceeded.selector, a + b, CAP));
        _mint(a, b);
    }

    function test_the_constructor_reverts_when_lengths_differ() external {
        vm.expectRevert(abi.encodeWithSelector(IAvenueToken.LengthMismatch.selector, 1, 2));
        new AvenueToken(new address[](1), new uint256[](2));
    }

    function testFuzz_burn_destroys_the_callers_own_tokens_only(uint256 amount) external {
        uint256 have = token.balanceOf(requester);
        amount = bound(amount, 0, have);
        uint256 others = token.balanceOf(address(this));
        vm.prank(requester);
        token.burn(amount);
        assertEq(token.balanceOf(requester), have - amount, "burned");
        assertEq(token.balanceOf(address(this)), others, "others");
        assertEq(token.totalSupply(), CAP - amount, "supply");
        vm.expectRevert(
            abi.encodeWithSelector(
                IERC20Errors.ERC20InsufficientBalance.selector, requester, have - amount, have - amount + 1
            )
        );
        vm.prank(requester);
        token.burn(have - amount + 1);
    }

    function test_permit_is_used_once() external {
        (uint8 v, bytes32 r, bytes32 s) = permitOf(requesterKey, stranger, 7, block.timestamp);
        token.permit(requester, stranger, 7, block.timestamp, v, r, s);
        assertEq(token.allowance(requester, stranger), 7, "allowed");
        vm.expectRevert();
        token.permit(requester, stranger, 7, block.timestamp, v, r, s);
    }

    /* FAUCET */

    function test_the_faucet_refuses_mainnet() external {
        vm.chainId(1);
        vm.expectRevert(abi.encodeWithSelector(IFaucet.MainnetRefused.selector, 1));
        new Faucet(token, 1, 1);
    }

    function test_the_faucet_refuses_to_give_nothing() external {
        vm.expectRevert(abi.encodeWithSelector(IFaucet.ZeroValue.selector, "token"));
        new Faucet(AvenueToken(address(0)), 1, 1);
        vm.expectRevert(abi.encodeWithSelector(IFaucet.ZeroValue.selector, "amount"));
        new Faucet(token, 0, 1);
    }

    function testFuzz_the_faucet_serves_a_recipient_once_per_cooldown(uint32 wait, address caller) external {
        Faucet faucet = new Faucet(token, 5e18, 1 days);
        token.transfer(address(faucet), 100e18);
        vm.expectEmit(address(faucet));
        emit IFaucet.Dripped(stranger, caller, 5e18);
        vm.prank(caller);
        faucet.drip(stranger);
        assertEq(token.balanceOf(stranger), 5e18, "given");
        assertEq(faucet.nextDripAt(stranger), block.timestamp + 1 days, "next");
        faucet.drip(requester);

        wait = uint32(bound(wait, 0, 1 days - 1));
        vm.warp(block.timestamp + wait);
        vm.expectRevert(abi.encodeWithSelector(IFaucet.CoolingDown.selector, stranger, 1 days - wait));
        faucet.drip(stranger);
        vm.warp(faucet.nextDripAt(stranger));
        faucet.drip(stranger);
        assertEq(token.balanceOf(stranger), 10e18, "given again");
    }

    function test_the_faucet_says_when_it_is_empty() external {
        Faucet faucet = new Faucet(token, 5e18, 1 days);
        token.transfer(address(faucet), 4e18);
        vm.expectRevert(abi.encodeWithSelector(IFaucet.FaucetEmpty.selector, 4e18, 5e18));
        faucet.drip(stranger);
    }

    function _mint(uint256 a, uint256 b) private returns (AvenueToken) {
        address[] memory recipients = new address[](2);
        uint256[] memory amounts = new uint256[](2);
        (recipients[0], amounts[0]) = (requester, a);
        (recipients[1], amounts[1]) = (stranger, b);
        return new AvenueToken(recipients, amounts);
    }
}
