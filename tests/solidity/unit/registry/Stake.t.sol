// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {INodeRegistry} from "../../../../contracts/interfaces/INodeRegistry.sol";
import {World} from "../../support/World.sol";

contract StakeTest is World {
    /* STAKE */

    function test_stake_reverts_when_the_amount_is_zero() external {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.ZeroValue.selector, "amount"));
        registry.stake(alice.id, 0);
    }

    function testFuzz_anybody_adds_stake_and_it_belongs_to_the_owner(uint96 amount) external {
        amount = uint96(bound(amount, 1, 1_000_000e18));
        vm.expectEmit(address(registry));
        emit INodeRegistry.Staked(alice.id, address(this), amount);
        registry.stake(alice.id, amount);
        assertEq(registry.freeStake(alice.id), STAKE + amount, "stake");
        assertEq(token.balanceOf(address(registry)), 2 * STAKE + amount, "balance");
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotOwner.selector, alice.id, address(this)));
        registry.requestUnbond(alice.id, amount);
    }

    function testFuzz_stake_with_permit_works_whether_or_not_it_was_front_run(bool frontRun) external {
        token.transfer(alice.owner, 5e18);
        uint256 key = keyOf("alice owner");
        (uint8 v, bytes32 r, bytes32 s) = permitOf(key, address(registry), 5e18, block.timestamp);
        if (frontRun) {
            vm.prank(stranger);
            token.permit(alice.owner, address(registry), 5e18, block.timestamp, v, r, s);
        }
        vm.prank(alice.owner);
        registry.stakeWithPermit(alice.id, 5e18, block.timestamp, v, r, s);
        assertEq(registry.freeStake(alice.id), STAKE + 5e18, "stake");
    }

    function test_stake_with_a_bad_permit_reverts() external {
        (uint8 v, bytes32 r, bytes32 s) = permitOf(keyOf("stranger"), address(registry), 5e18, block.timestamp);
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientAllowance.selector, address(registry), 0, 5e18)
        );
        vm.prank(alice.owner);
        registry.stakeWithPermit(alice.id, 5e18, block.timestamp, v, r, s);
    }

    function test_a_node_is_active_from_the_minimum_stake_on() external {
        Worker memory carol = aWorker("carol", MIN_STAKE - 1);
        assertTrue(!registry.isActive(carol.id), "one wei short");
        registry.stake(carol.id, 1);
        assertTrue(registry.isActive(carol.id), "active");
    }

    /* UNBOND */

    function test_unbond_reverts_for_others_than_the_owner() external {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotOwner.selector, alice.id, alice.operator));
        vm.prank(alice.operator);
        registry.requestUnbond(alice.id, 1);
    }

    function test_unbond_reverts_when_the_amount_is_zero() external {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.ZeroValue.selector, "amount"));
        _unbond(0);
    }

    function testFuzz_unbond_reverts_when_free_stake_does_not_cover_it(uint96 locked, uint96 amount) external {
        locked = uint96(bound(locked, 1, STAKE));
        amount = uint96(bound(amount, STAKE - locked + 1, type(uint96).max));
        _lock(locked);
        vm.expectRevert(
            abi.encodeWithSelector(INodeRegistry.NotEnoughFreeStake.selector, alice.id, STAKE - locked, amount)
        );
        _unbond(amount);
    }

    function test_unbond_reverts_when_ten_tranches_are_unbonding() external {
        for (uint256 i = 0; i < 10; i++) {
            _unbond(1e18);
            vm.warp(block.timestamp + 1);
        }
        bytes memory full = abi.encodeWithSelector(INodeRegistry.TooManyTranches.selector, alice.id);
        vm.expectRevert(full);
        _unbond(1e18);
        vm.expectRevert(full);
        vm.prank(alice.owner);
        registry.deregister(alice.id);

        // The way out: one matures, is withdrawn, and there is room.
        vm.warp(block.timestamp + UNBONDING_S - 10);
        assertEq(_withdraw(), 1e18, "the oldest");
        _unbond(1e18);
    }

    function test_unbond_requests_of_the_same_second_share_a_tranche() external {
        for (uint256 i = 0; i < 12; i++) {
            vm.expectEmit(address(registry));
            emit INodeRegistry.UnbondRequested(alice.id, 1e18, uint40(block.timestamp + UNBONDING_S));
            _unbond(1e18);
        }
        INodeRegistry.Tranche[] memory queue = registry.tranches(alice.id);
        assertEq(queue.length, 1, "tranches");
        assertEq(queue[0].amount, 12e18, "amount");
    }

    function testFuzz_a_later_unbond_never_puts_off_an_older_one(uint32 wait) external {
        wait = uint32(bound(wait, 1, UNBONDING_S));
        uint256 start = block.timestamp;
        _unbond(1e18);
        vm.warp(start + wait);
        _unbond(2e18);
        INodeRegistry.Tranche[] memory queue = registry.tranches(alice.id);
        assertEq(queue[0].maturesAt, start + UNBONDING_S, "first");
        assertEq(queue[1].maturesAt, start + wait + UNBONDING_S, "second");
        vm.warp(start + UNBONDING_S);
        assertEq(_withdraw(), wait == 0 ? 3e18 : 1e18, "the first, in its own time");
    }

    /* WITHDRAW */

    function test_withdraw_reverts_for_others_than_the_owner() external {
        _unbond(1e18);
        vm.warp(block.timestamp + UNBONDING_S);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotOwner.selector, alice.id, alice.operator));
        vm.prank(alice.operator);
        registry.withdraw(alice.id);
    }

    function test_withdraw_reverts_when_nothing_has_matured() external {
        bytes memory nothing = abi.encodeWithSelector(INodeRegistry.NothingToWithdraw.selector, alice.id);
        vm.expectRevert(nothing);
        _withdraw();
        _unbond(1e18);
        vm.warp(block.timestamp + UNBONDING_S - 1);
        vm.expectRevert(nothing);
        _withdraw();
        vm.warp(block.timestamp + 1);
        assertEq(_withdraw(), 1e18, "at maturity");
    }

    function testFuzz_withdraw_sends_what_has_matured_and_keeps_the_rest_in_order(uint8 count, uint8 matured) external {
        count = uint8(bound(count, 1, 10));
        matured = uint8(bound(matured, 1, count));
        uint256 start = block.timestamp;
        uint256 due = 0;
        for (uint256 i = 0; i < count; i++) {
            vm.warp(start + i * 1 hours);
            _unbond(uint96((i + 1) * 1e18));
            if (i < matured) due += (i + 1) * 1e18;
        }
        vm.warp(start + (matured - 1) * 1 hours + UNBONDING_S);

        vm.expectEmit(address(registry));
        emit INodeRegistry.Withdrawn(alice.id, alice.owner, uint96(due));
        assertEq(_withdraw(), due, "matured");
        assertEq(token.balanceOf(alice.owner), due, "received");
        INodeRegistry.Tranche[] memory left = registry.tranches(alice.id);
        assertEq(left.length, count - matured, "left");
        for (uint256 i = 0; i < left.length; i++) {
            assertEq(left[i].amount, (matured + i + 1) * 1e18, "order");
        }
    }

    /* LOCK */

    function testFuzz_only_the_market_locks_unlocks_and_slashes(address caller) external {
        vm.assume(caller != address(market));
        bytes memory refused = abi.encodeWithSelector(INodeRegistry.NotMarket.selector, caller);
        vm.startPrank(caller);
        vm.expectRevert(refused);
        registry.lock(alice.id, 1);
        vm.expectRevert(refused);
        registry.unlock(alice.id, 1);
        vm.expectRevert(refused);
        registry.slash(alice.id, 0, 1, INodeRegistry.Split(address(0), 0, address(0), 0));
        vm.stopPrank();
    }

    function testFuzz_lock_and_unlock_move_stake_between_free_and_locked(uint96 amount, uint96 back) external {
        amount = uint96(bound(amount, 0, STAKE));
        back = uint96(bound(back, 0, amount));
        vm.expectEmit(address(registry));
        emit INodeRegistry.Locked(alice.id, amount);
        _lock(amount);
        assertEq(registry.freeStake(alice.id), STAKE - amount, "free");
        vm.expectEmit(address(registry));
        emit INodeRegistry.Unlocked(alice.id, back);
        vm.prank(address(market));
        registry.unlock(alice.id, back);
        assertEq(registry.getNode(alice.id).locked, amount - back, "locked");
        assertEq(registry.getNode(alice.id).stake, STAKE, "stake");
    }

    function testFuzz_lock_reverts_when_free_stake_does_not_cover_it(uint96 amount) external {
        amount = uint96(bound(amount, STAKE + 1, type(uint96).max));
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotEnoughFreeStake.selector, alice.id, STAKE, amount));
        _lock(amount);
    }

    function test_lock_reverts_when_unbonding_took_the_node_below_the_minimum() external {
        _unbond(STAKE - MIN_STAKE + 1);
        vm.expectRevert(
            abi.encodeWithSelector(INodeRegistry.NodeNotActive.selector, alice.id, MIN_STAKE - 1, MIN_STAKE)
        );
        _lock(1);
    }

    function test_unlock_reverts_beyond_what_is_locked() external {
        _lock(5);
        vm.expectRevert();
        vm.prank(address(market));
        registry.unlock(alice.id, 6);
    }

    function _lock(uint96 amount) private {
        vm.prank(address(market));
        registry.lock(alice.id, amount);
    }

    function _unbond(uint96 amount) private {
        vm.prank(alice.owner);
        registry.requestUnbond(alice.id, amount);
    }

    function _withdraw() private returns (uint96) {
        vm.prank(alice.owner);
        return registry.withdraw(alice.id);
    }
}
