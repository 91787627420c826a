// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {TaskMarket} from "../../../../contracts/TaskMarket.sol";
import {IAvenueToken} from "../../../../contracts/interfaces/IAvenueToken.sol";
import {INodeRegistry} from "../../../../contracts/interfaces/INodeRegistry.sol";
import {ITaskMarket} from "../../../../contracts/interfaces/ITaskMarket.sol";
import {TaskId, TaskSpec, TaskState, TaskStatus} from "../../../../contracts/types/Task.sol";
import {World} from "../../support/World.sol";

contract PostTest is World {
    function testFuzz_reverts_when_the_caller_is_not_the_requester(address caller) external {
        vm.assume(caller != requester);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NotRequester.selector, caller, requester));
        vm.prank(caller);
        market.post(aSpec());
    }

    function test_reverts_naming_each_field_that_cannot_be_run() external {
        TaskSpec memory spec = aSpec();
        spec.programRoot = 0;
        _refused(spec, "programRoot");

        spec = aSpec();
        spec.aggregationRoot = 0;
        _refused(spec, "aggregationRoot");
        spec = aSoloSpec();
        spec.aggregationRoot = keccak256("aggregation");
        _refused(spec, "aggregationRoot");

        spec = aSpec();
        spec.initialStateRoot = 0;
        _refused(spec, "initialStateRoot");

        spec = aSpec();
        spec.dataRoot = 0;
        _refused(spec, "dataRoot");

        spec = aSpec();
        spec.manifest = 0;
        _refused(spec, "manifest");

        spec = aSpec();
        spec.unitPrice = 0;
        _refused(spec, "unitPrice");

        spec = aSoloSpec();
        spec.aggregationPrice = 1;
        _refused(spec, "aggregationPrice");

        spec = aSpec();
        spec.collateral = spec.unitPrice - 1;
        _refused(spec, "collateral");
        spec = aSpec();
        spec.aggregationPrice = spec.collateral + 1;
        _refused(spec, "collateral");
    }

    function test_reverts_naming_each_bound_of_the_plan() external {
        TaskSpec memory spec = aSpec();
        spec.rounds = 0;
        _refused(spec, "rounds");
        spec.rounds = 65_536;
        _refused(spec, "rounds");

        spec = aSpec();
        spec.shards = 0;
        _refused(spec, "shards");
        spec.shards = 257;
        _refused(spec, "shards");

        spec = aSpec();
        spec.steps = 0;
        _refused(spec, "steps");

        spec = aSpec();
        spec.checkpointInterval = 0;
        _refused(spec, "checkpointInterval");
        spec.checkpointInterval = spec.steps + 1;
        _refused(spec, "checkpointInterval");
    }

    function test_reverts_naming_each_time_that_is_out_of_bounds() external {
        TaskSpec memory spec = aSpec();
        spec.deadline = uint40(block.timestamp);
        _refused(spec, "deadline");
        spec.deadline = uint40(block.timestamp + 365 days + 1);
        _refused(spec, "deadline");

        spec = aSpec();
        spec.computeWindow = 0;
        _refused(spec, "computeWindow");
        spec.computeWindow = 30 days + 1;
        _refused(spec, "computeWindow");

        spec = aSpec();
        spec.revealWindow = 0;
        _refused(spec, "revealWindow");
        spec.revealWindow = 30 days + 1;
        _refused(spec, "revealWindow");

        spec = aSpec();
        spec.challengeWindow = 0;
        _refused(spec, "challengeWindow");
        spec.challengeWindow = 30 days + 1;
        _refused(spec, "challengeWindow");
    }

    function test_reverts_when_the_escrow_does_not_fit() external {
        TaskSpec memory spec = aSpec();
        spec.unitPrice = type(uint96).max;
        spec.collateral = type(uint96).max;
        _refused(spec, "escrow");
    }

    function test_reverts_when_the_same_specification_was_posted_before() external {
        TaskSpec memory spec = aSpec();
        TaskId task = post(spec);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.TaskExists.selector, task));
        vm.prank(requester);
        market.post(spec);

        vm.prank(requester);
        market.cancel(spec);
        market.close(spec);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.TaskExists.selector, task));
        vm.prank(requester);
        market.post(spec);
    }

    function test_reverts_when_tokens_do_not_cover_the_escrow() external {
        vm.prank(requester);
        token.approve(address(market), 65e18);
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientAllowance.selector, address(market), 65e18, 66e18)
        );
        vm.prank(requester);
        market.post(aSpec());
    }

    function testFuzz_takes_exactly_the_escrow_of_the_plan(uint32 rounds, uint16 shards, uint96 unitPrice, uint96 extra)
        external
    {
        TaskSpec memory spec = aSpec();
        spec.rounds = uint32(bound(rounds, 1, 65_535));
        spec.shards = uint16(bound(shards, 2, 256));
        spec.unitPrice = uint96(bound(unitPrice, 1, 1e19));
        spec.aggregationPrice = uint96(bound(extra, 0, 1e19));
        spec.collateral = 1e19;
        uint256 escrow = uint256(spec.rounds) * (uint256(spec.shards) * spec.unitPrice + spec.aggregationPrice);
        vm.assume(escrow <= token.balanceOf(requester));
        uint256 before = token.balanceOf(requester);

        TaskId task = post(spec);

        assertEq(token.balanceOf(address(market)), escrow, "market holds the escrow");
        assertEq(token.balanceOf(requester), before - escrow, "requester paid the escrow");
        TaskState memory state = market.getTask(task);
        assertEq(state.escrow, escrow, "escrow recorded");
        assertTrue(state.status == TaskStatus.Posted, "posted");
        assertEq(uint256(state.inFlight) + state.finalised, 0, "nothing done yet");
    }

    function testFuzz_a_round_of_one_shard_has_no_aggregation_to_pay(uint32 rounds, uint96 unitPrice) external {
        TaskSpec memory spec = aSoloSpec();
        spec.rounds = uint32(bound(rounds, 1, 65_535));
        spec.unitPrice = uint96(bound(unitPrice, 1, 1e21));
        spec.collateral = 1e21;
        post(spec);
        assertEq(token.balanceOf(address(market)), uint256(spec.rounds) * spec.unitPrice, "escrow");
    }

    function test_stores_one_slot_whatever_the_size_of_the_plan() external {
        TaskSpec memory spec = aSpec();
        spec.rounds = 65_535;
        spec.shards = 256;
        vm.prank(requester);
        vm.record();
        market.post(spec);
        (, bytes32[] memory writes) = vm.accesses(address(market));
        assertTrue(writes.length > 0, "nothing written");
        for (uint256 i = 1; i < writes.length; i++) {
            assertEq(writes[i], writes[0], "a second slot");
        }
    }

    function test_emits_the_whole_specification() external {
        TaskSpec memory spec = aSpec();
        TaskId task = market.taskIdOf(spec);
        vm.expectEmit(address(market));
        emit ITaskMarket.TaskPosted(task, requester, 66e18, spec);
        vm.prank(requester);
        market.post(spec);
    }

    function test_the_task_id_is_the_hash_of_the_specification() external view {
        TaskSpec memory spec = aSpec();
        assertEq(TaskId.unwrap(market.taskIdOf(spec)), keccak256(abi.encode(spec)), "id");
    }

    function test_with_permit_needs_no_allowance_before() external {
        TaskSpec memory spec = _withoutAllowance();
        (uint8 v, bytes32 r, bytes32 s) = permitOf(requesterKey, address(market), 66e18, block.timestamp);
        vm.prank(requester);
        market.postWithPermit(spec, block.timestamp, v, r, s);
        assertEq(token.balanceOf(address(market)), 66e18, "escrow");
    }

    function test_with_permit_still_posts_when_a_front_runner_used_it() external {
        TaskSpec memory spec = _withoutAllowance();
        (uint8 v, bytes32 r, bytes32 s) = permitOf(requesterKey, address(market), 66e18, block.timestamp);
        vm.prank(stranger);
        token.permit(requester, address(market), 66e18, block.timestamp, v, r, s);
        vm.prank(requester);
        market.postWithPermit(spec, block.timestamp, v, r, s);
        assertEq(token.balanceOf(address(market)), 66e18, "escrow");
    }

    function test_with_permit_reverts_when_it_is_bad_and_there_is_no_allowance() external {
        TaskSpec memory spec = _withoutAllowance();
        (uint8 v, bytes32 r, bytes32 s) = permitOf(keyOf("stranger"), address(market), 66e18, block.timestamp);
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientAllowance.selector, address(market), 0, 66e18)
        );
        vm.prank(requester);
        market.postWithPermit(spec, block.timestamp, v, r, s);
    }

    function test_deployment_needs_both_addresses() external {
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.ZeroAddress.selector, "token"));
        new TaskMarket(IAvenueToken(address(0)), registry);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.ZeroAddress.selector, "registry"));
        new TaskMarket(token, INodeRegistry(address(0)));
    }

    function _withoutAllowance() private returns (TaskSpec memory) {
        vm.prank(requester);
        token.approve(address(market), 0);
        return aSpec();
    }

    function _refused(TaskSpec memory spec, string memory field) private {
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.InvalidSpec.selector, field));
        vm.prank(requester);
        market.post(spec);
    }
}
