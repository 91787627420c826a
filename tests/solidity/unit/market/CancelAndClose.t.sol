// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ITaskMarket} from "../../../../contracts/interfaces/ITaskMarket.sol";
import {TaskId, TaskSpec, TaskStatus, UnitStatus} from "../../../../contracts/types/Task.sol";
import {World} from "../../support/World.sol";

contract CancelAndCloseTest is World {
    function testFuzz_cancel_reverts_when_the_caller_is_not_the_requester(address caller) external {
        vm.assume(caller != requester);
        TaskSpec memory spec = aSpec();
        post(spec);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NotRequester.selector, caller, requester));
        vm.prank(caller);
        market.cancel(spec);
    }

    function test_cancel_reverts_unless_posted() external {
        TaskSpec memory spec = aSpec();
        _cancelRefused(spec, TaskStatus.None);
        post(spec);
        _cancel(spec);
        _cancelRefused(spec, TaskStatus.Cancelled);
        market.close(spec);
        _cancelRefused(spec, TaskStatus.Closed);
    }

    function test_cancel_allows_no_further_claim_and_moves_no_money() external {
        TaskSpec memory spec = aSpec();
        TaskId task = post(spec);
        vm.expectEmit(address(market));
        emit ITaskMarket.TaskCancelled(task);
        _cancel(spec);
        assertEq(token.balanceOf(address(market)), 66e18, "escrow stays until closed");
        assertEq(market.credit(requester), 0, "no credit yet");
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.TaskNotOpen.selector, task, uint8(TaskStatus.Cancelled)));
        vm.prank(alice.operator);
        market.claim(spec, 0, noAdmission());
    }

    function testFuzz_cancel_lets_units_in_flight_finish_and_be_paid(uint256 status) external {
        TaskSpec memory spec = aSpec();
        post(spec);
        UnitStatus reached = UnitStatus(bound(status, 1, 3));
        bringTo(spec, 0, alice, reached);
        _cancel(spec);
        if (reached < UnitStatus.Committed) commit(spec, 0, alice);
        if (reached < UnitStatus.Revealed) reveal(spec, 0, alice);
        pastDeadlineOf(spec, 0);
        market.finalise(spec, 0);
        market.close(spec);
        assertEq(market.credit(alice.owner), spec.unitPrice, "pay");
        assertEq(market.credit(requester), 66e18 - spec.unitPrice, "refund");
    }

    function test_close_reverts_when_never_posted_and_when_closed() external {
        TaskSpec memory spec = aSpec();
        _closeRefusedBy(spec, TaskStatus.None);
        post(spec);
        _cancel(spec);
        market.close(spec);
        _closeRefusedBy(spec, TaskStatus.Closed);
        assertEq(market.credit(requester), 66e18, "refunded once");
    }

    function test_close_reverts_while_units_can_be_claimed() external {
        TaskSpec memory spec = aSpec();
        TaskId task = post(spec);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NotCloseable.selector, task, 0));
        market.close(spec);
        // At the deadline itself a claim is still possible.
        vm.warp(spec.deadline);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NotCloseable.selector, task, 0));
        market.close(spec);
    }

    function testFuzz_close_reverts_while_a_unit_is_in_flight(uint256 status, bool cancelled) external {
        TaskSpec memory spec = aSpec();
        TaskId task = post(spec);
        bringTo(spec, 0, alice, UnitStatus(bound(status, 1, 3)));
        if (cancelled) _cancel(spec);
        vm.warp(uint256(spec.deadline) + 1);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NotCloseable.selector, task, 1));
        market.close(spec);
    }

    function test_close_after_cancel_refunds_everything_to_the_requester() external {
        TaskSpec memory spec = aSpec();
        TaskId task = post(spec);
        _cancel(spec);
        vm.expectEmit(address(market));
        emit ITaskMarket.TaskClosed(task, 66e18);
        vm.prank(stranger);
        market.close(spec);
        assertEq(market.credit(requester), 66e18, "credit");
        assertEq(market.credit(stranger), 0, "the caller gets nothing");
        assertEq(market.getTask(task).escrow, 0, "escrow");
    }

    function test_close_after_the_deadline_refunds_what_was_not_worked() external {
        TaskSpec memory spec = aSpec();
        post(spec);
        bringTo(spec, 0, alice, UnitStatus.Finalised);
        vm.warp(uint256(spec.deadline) + 1);
        vm.prank(stranger);
        market.close(spec);
        assertEq(market.credit(requester), 56e18, "credit");
    }

    function test_close_after_the_last_unit_refunds_nothing() external {
        TaskSpec memory spec = aSpec();
        TaskId task = post(spec);
        for (uint32 unit = 0; unit < 8; unit++) {
            bringTo(spec, unit, unit % 2 == 0 ? alice : bob, UnitStatus.Finalised);
        }
        market.close(spec);
        assertTrue(market.getTask(task).status == TaskStatus.Closed, "closed");
        assertEq(market.credit(requester), 0, "nothing left");
        assertEq(uint256(market.credit(alice.owner)) + market.credit(bob.owner), 66e18, "all paid");
    }

    function _cancel(TaskSpec memory spec) private {
        vm.prank(requester);
        market.cancel(spec);
    }

    function _cancelRefused(TaskSpec memory spec, TaskStatus status) private {
        TaskId task = market.taskIdOf(spec);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.TaskNotOpen.selector, task, uint8(status)));
        _cancel(spec);
    }

    function _closeRefusedBy(TaskSpec memory spec, TaskStatus status) private {
        TaskId task = market.taskIdOf(spec);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.TaskNotOpen.selector, task, uint8(status)));
        market.close(spec);
    }
}
