// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ITaskMarket} from "../../../../contracts/interfaces/ITaskMarket.sol";
import {TaskSpec, TaskStatus, UnitStatus} from "../../../../contracts/types/Task.sol";
import {World} from "../../support/World.sol";

/// @notice One test for every pair of a state and the party that goes silent in it. All moves after the silence are
/// the stranger's.
contract SilenceTest is World {
    TaskSpec internal spec;

    function setUp() public override {
        super.setUp();
        spec = aSpec();
        post(spec);
    }

    function test_claimed_and_the_worker_is_silent() external {
        bringTo(spec, 0, alice, UnitStatus.Claimed);
        pastDeadlineOf(spec, 0);
        vm.prank(stranger);
        market.expire(spec, 0);
        assertTrue(statusOf(spec, 0) == UnitStatus.Open, "open");
        _drains();
    }

    function test_committed_and_the_worker_is_silent() external {
        bringTo(spec, 0, alice, UnitStatus.Committed);
        pastDeadlineOf(spec, 0);
        vm.prank(stranger);
        market.expire(spec, 0);
        assertTrue(statusOf(spec, 0) == UnitStatus.Open, "open");
        _drains();
    }

    function test_revealed_and_requester_and_worker_are_silent() external {
        bringTo(spec, 0, alice, UnitStatus.Revealed);
        pastDeadlineOf(spec, 0);
        vm.prank(stranger);
        market.finalise(spec, 0);
        assertTrue(statusOf(spec, 0) == UnitStatus.Finalised, "finalised");
        _drains();
        assertEq(token.balanceOf(alice.owner), spec.unitPrice, "the worker is paid");
    }

    function test_open_and_nobody_wants_it() external {
        _drains();
        assertEq(token.balanceOf(requester), 400_000_000e18, "all of it back");
    }

    function test_revealed_after_the_deadline_of_the_task() external {
        // The unit outlives the task's deadline: the refund waits for it, and for nothing else.
        vm.warp(spec.deadline);
        bringTo(spec, 0, alice, UnitStatus.Revealed);
        pastDeadlineOf(spec, 0);
        vm.prank(stranger);
        market.finalise(spec, 0);
        _drains();
    }

    function test_claimed_after_a_cancel_and_both_are_silent() external {
        bringTo(spec, 0, alice, UnitStatus.Claimed);
        vm.prank(requester);
        market.cancel(spec);
        pastDeadlineOf(spec, 0);
        vm.prank(stranger);
        market.expire(spec, 0);
        vm.prank(stranger);
        market.close(spec);
        assertTrue(taskStatusOf(spec) == TaskStatus.Closed, "closed before the deadline");
    }

    function test_revealed_after_a_cancel_and_both_are_silent() external {
        bringTo(spec, 0, alice, UnitStatus.Revealed);
        vm.prank(requester);
        market.cancel(spec);
        pastDeadlineOf(spec, 0);
        vm.prank(stranger);
        market.finalise(spec, 0);
        vm.prank(stranger);
        market.close(spec);
        assertEq(market.credit(requester), 56e18, "refund");
        assertEq(market.credit(alice.owner), 10e18, "pay");
    }

    function test_cancelled_and_the_requester_is_silent() external {
        vm.prank(requester);
        market.cancel(spec);
        vm.prank(stranger);
        market.close(spec);
        assertTrue(taskStatusOf(spec) == TaskStatus.Closed, "closed");
    }

    function test_private_and_the_requester_admits_nobody() external {
        TaskSpec memory secret = aSpec();
        secret.isPrivate = true;
        post(secret);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NotAdmitted.selector, alice.id, 0));
        vm.prank(alice.operator);
        market.claim(secret, 0, noAdmission());
        vm.warp(uint256(spec.deadline) + 1);
        vm.startPrank(stranger);
        market.close(secret);
        market.close(spec);
        market.withdraw(requester);
        vm.stopPrank();
        assertEq(token.balanceOf(address(market)), 0, "drained");
    }

    function test_a_requester_that_dies_after_posting_still_gets_its_model_trained() external {
        // Rounds follow each other, and pay flows, without one move of the requester.
        workRound(spec, 0, alice);
        workRound(spec, 1, bob);
        assertTrue(market.inputStateRoot(spec, 2) != 0, "trained");
        vm.warp(block.timestamp + spec.challengeWindow + 1);
        for (uint32 unit = 0; unit < 8; unit++) {
            vm.prank(stranger);
            market.finalise(spec, unit);
        }
        vm.startPrank(stranger);
        market.close(spec);
        market.withdraw(alice.owner);
        market.withdraw(bob.owner);
        vm.stopPrank();
        assertEq(token.balanceOf(address(market)), 0, "drained before the deadline");
    }

    /// @dev From here on nobody but the stranger moves, and every token leaves the market.
    function _drains() private {
        vm.warp(uint256(spec.deadline) + 1);
        vm.startPrank(stranger);
        market.close(spec);
        if (market.credit(requester) > 0) market.withdraw(requester);
        if (market.credit(alice.owner) > 0) market.withdraw(alice.owner);
        vm.stopPrank();
        assertEq(token.balanceOf(address(market)), 0, "drained");
        assertEq(market.getTask(market.taskIdOf(spec)).escrow, 0, "no escrow");
    }
}
